"""The cost file of a directly trained network: what was counted is what is written, printed and shown."""

import json

import pytest

from ann2snn.cost import count_operations
from ann2snn.generate.probe import sampler_states
from ann2snn.report.costs import cost_table, layer_table, parse_costs
from ann2snn.stages.cost import COST_TIMES, measure_direct
from tests.cost.test_direct import fsddim, sddpm


@pytest.mark.parametrize("make", [sddpm, fsddim])
def test_the_network_alone_on_its_own_sampling_path(make, tmp_path, capsys):
    net = make().float()
    report = measure_direct(tmp_path / "cost.json", net, 1, 7, calls_per_image=50)
    assert next(net.parameters()).dtype.is_floating_point and next(net.parameters()).element_size() == 4
    content = json.loads((tmp_path / "cost.json").read_text())
    assert (content["images"], content["times"], content["calls_per_image"]) == (1, COST_TIMES, 50)
    (raw,) = content["reports"]
    assert raw["spiking"] == net.spiking.to_dict() and raw["spiking"]["spike_steps"] == 3
    double = net.double()
    x, t = sampler_states(double, 1, COST_TIMES, 7)
    again = count_operations(double, x, t)
    assert raw["totals"]["ac"] == pytest.approx(again.total("ac")) and report.total("mac") == pytest.approx(
        again.total("mac")
    )
    energy = report.energies()["counted"]["int8"].total
    assert raw["energy_per_generated_image"]["counted"]["int8"]["total_pj"] == 50 * energy

    costs = parse_costs(content, "cost.json", notes := [])
    label = f"{net.config.arch.upper()} 3 steps"
    assert not notes and [row.label for row in costs.rows()] == [label, f"{label}, all MAC"]
    assert costs.rows()[0].steps == (3, 3 + net.depth) and costs.rows()[0].counts["ac"] == report.total("ac")
    assert costs.rows()[1].counts["mac"] == report.total("ac") + report.total("mac")
    assert len(layer_table(costs.accounts[0])[1]) == len(report.layers)
    printed = capsys.readouterr().out
    assert label in printed and "the network's own sampling path" in printed and "50 calls" in printed
    assert all(len(row) == len(cost_table(costs)[0]) for row in cost_table(costs)[1])
