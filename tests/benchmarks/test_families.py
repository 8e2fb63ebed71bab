"""The comparison of network families: equal sizes, stages that run once, rows that are found again, and the table."""

import json
from types import SimpleNamespace

import pytest
import torch

from ann2snn.config import UNetConfig
from ann2snn.errors import UserError
from ann2snn.nets.architecture import build_network
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from benchmarks import families


def arguments(out, *more: str):
    return families.parse(["--out", str(out), "--parameters", "60000", *more])


@pytest.fixture(scope="module")
def found():
    """The networks of the default sizes, which take seconds to find."""
    return families.networks(arguments("nowhere"))


def trainable(config) -> int:
    return sum(p.numel() for p in build_network(config).parameters() if p.requires_grad)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_the_nearest_width_is_the_nearest_of_all():
    def make(ch: int) -> SDDPMConfig:
        return SDDPMConfig(ch=ch, ch_mult=(1,), num_res_blocks=1)

    widths = range(4, 17, 2)
    sizes = {ch: trainable(make(ch)) for ch in widths}
    for wanted in (0, sizes[8], sizes[8] + 1, sizes[10] - 1, (sizes[12] + sizes[14]) // 2 - 1, 10**9):
        config, size = families.nearest_width(make, wanted, widths)
        assert size == sizes[config.ch] and abs(size - wanted) == min(abs(s - wanted) for s in sizes.values())
    assert families.nearest_width(make, sizes[8], widths)[0].ch == 8


def test_the_table_of_times_is_no_parameter_of_the_comparison():
    """SDDPM counts it among its own, though it never learns."""
    config = SDDPMConfig(ch=8, ch_mult=(1,), num_res_blocks=1)
    net = build_network(config)
    assert families.nearest_width(lambda ch: config, 0, range(8, 9))[1] == sum(
        p.numel() for name, p in net.named_parameters() if "timembedding.0" not in name
    )


@pytest.mark.slow
def test_families_are_of_one_size_and_shape(tmp_path):
    args = arguments(tmp_path, "--parameters", "200000", "--spike_steps", "3", "--bits", "3", "--image_size", "8")
    found = families.networks(args)
    kinds = {"converted": UNetConfig, "sddpm": SDDPMConfig, "fsddim": FSDDIMConfig}
    assert {name: type(config) for name, (config, _) in found.items()} == kinds
    for name, (config, size) in found.items():
        assert 0.79 < size / 200_000 < 1.21, (name, size)  # four channels more of a U-Net are half as many again
        assert (config.image_size, config.in_channels, config.ch_mult, config.num_res_blocks) == ((8, 8), 1, (1, 2), 1)
        assert config.dropout == 0 and (name == "converted" or config.spike_steps == 3)
    assert found["converted"][0].bits == 3 and found["sddpm"][0].corrections == ("init",)


# ---- stages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch):
    """What would have been started; nothing is. The exit codes to come may be put into `codes`."""
    started, codes = [], []

    def run(command, **options):
        started.append(command)
        return SimpleNamespace(returncode=codes.pop(0) if codes else 0)

    monkeypatch.setattr(families.subprocess, "run", run)
    return SimpleNamespace(started=started, codes=codes)


def test_stages_run_once_and_are_remembered(tmp_path, commands):
    for _ in range(2):
        stages = families.Stages(arguments(tmp_path))
        for _ in range(2):
            stages.run("first", "SNN_train.py", "--train")
    assert len(commands.started) == 1 and commands.started[0][-2:] == ["--train", "--num_threads=1"]
    assert json.loads((tmp_path / "families.json").read_text())["seconds"].keys() == {"first"}


def test_a_stage_that_failed_is_run_again(tmp_path, commands):
    stages = families.Stages(arguments(tmp_path))
    commands.codes.append(130)
    with pytest.raises(UserError, match=r"SNN_train.py ended with code 130"):
        stages.run("first", "SNN_train.py")
    families.Stages(arguments(tmp_path)).run("first", "SNN_train.py")
    assert len(commands.started) == 2


@pytest.mark.parametrize("change", ["--steps=7", "--corrections=", "--ch_mult=1,2,2", "--seed=1"])
def test_a_folder_keeps_to_its_settings(tmp_path, commands, change, capsys, found, monkeypatch):
    monkeypatch.setattr(families, "networks", lambda args: found)
    families.Stages(arguments(tmp_path)).run("first", "SNN_train.py")
    before = (tmp_path / "families.json").read_bytes()
    with pytest.raises(UserError, match="other settings"):
        families.Stages(arguments(tmp_path, change))
    assert families.main(["--out", str(tmp_path), "--parameters=60000", change]) == 2
    assert capsys.readouterr().err.startswith("error: ") and (tmp_path / "families.json").read_bytes() == before


def test_all_families_are_trained_with_the_same_budget(tmp_path, commands, found):
    stages = families.Stages(arguments(tmp_path, "--steps", "50", "--lr", "0.01"))
    families.train_all(stages, found)
    by_script = [(command[1].rpartition("/")[2], set(command[2:])) for command in commands.started]
    trained = [flags for name, flags in by_script if name in ("ANN_train.py", "SNN_train.py")]
    assert [name for name, _ in by_script].count("SNN_ft.py") == 1 and len(trained) == 4
    for flags in (flags for name, flags in by_script if name != "SNN_conversion.py"):
        assert {"--lr=0.01", "--seed=0", "--ema_decay=0.99", "--ema_warmup"} <= flags
    steps = [next(f for f in flags if f.startswith("--total_steps=")) for flags in trained]
    assert steps == ["--total_steps=50", "--total_steps=45", "--total_steps=50", "--total_steps=50"]
    assert {"--ft_steps=5", "--ft_method=tsm"} <= next(flags for name, flags in by_script if name == "SNN_ft.py")


def test_every_command_line_is_one_that_the_scripts_accept(tmp_path, commands, found):
    from absl import flags as absl_flags

    from ann2snn.cli import flags

    stages = families.Stages(arguments(tmp_path, "--fad_encoder", "a.pth", "--fad_stats", "b.npz"))
    families.train_all(stages, found)
    families.score_all(stages)
    before = set(flags.FLAGS)
    flags.define()
    try:
        for command in commands.started:
            flags.FLAGS.unparse_flags()
            for name in flags.FLAGS:
                flags.FLAGS[name].unparse()
            assert len(flags.FLAGS(["script.py", *command[2:]])) == 1, command
        known = {row.name for row in families.ROWS}
        scored = [name for name in stages.seconds if name in known]
        assert len(scored) == len(families.ROWS)
    except absl_flags.Error as error:
        pytest.fail(str(error))
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


# ---- figures --------------------------------------------------------------------------------------------------------


def line(**fields: object) -> str:
    return json.dumps({"count": 200, "spiking": None, "sampler": "ddim"} | fields) + "\n"


def test_a_row_finds_its_own_scores(tmp_path):
    args = arguments(tmp_path)
    (tmp_path / "snn_eval.txt").write_text(
        line(FD_lite=1.0)
        + line(FD_lite=2.0, spiking={"schedule": "layer_sync"})
        + line(FD_lite=3.0, spiking={"schedule": "stream"})
        + line(FAD_published=4.0)
        + line(FAD=5.0)
        + line(FD_lite=9.0, count=17)
    )
    ann, sync, stream = families.ROWS[:3]
    wanted = {"FD": 1.0, "FAD eval": 5.0, "FAD published": 4.0}
    assert families.scores_of(tmp_path, ann, args) == wanted
    assert families.scores_of(tmp_path, sync, args)["FD"] == 2.0
    assert families.scores_of(tmp_path, stream, args)["FD"] == 3.0
    (tmp_path / "snn_eval.txt").write_text(line(FD_lite=6.0, sampler="fsddim") + line(FD_lite=7.0))
    by_name = {row.name: families.scores_of(tmp_path, row, args)["FD"] for row in families.ROWS[-2:]}
    assert by_name == {"FSDDIM": 6.0, "FSDDIM, eta 1": 7.0}


def test_the_table_has_a_cell_for_every_column():
    figures = {"parameters": 201_234, "steps": 100, "training s": 12.5, "FD": 301.5, "FAD eval": None}
    figures |= {"FAD published": 4321.0, "spikes": 1234.5, "rate": 0.0213, "AC": 9e6, "MAC": 0.0}
    row = {"network": "SDDPM", **figures, "time steps": [4, 21], "energy": {"fp32 µJ": [1, 2], "int8 µJ": [3, 4]}}
    ann = row | {"network": "quantized ANN", "spikes": None, "rate": None, "time steps": None}
    text = families.table([row, ann]).splitlines()
    assert len(text) == 4 and text[0].split("  ")[0].strip() == "network"
    assert "301,234" not in text[2] and "201,234" in text[2] and "0.0213" in text[2] and "4,321" in text[2]
    assert text[3].count("–") == 4


def test_the_parts_fit_the_files_of_a_real_run(tmp_path, monkeypatch):
    """`collect` on cost accounts as the stages write them."""
    from ann2snn.config import SampleConfig
    from ann2snn.nets.sddpm import with_tsm
    from ann2snn.run.folder import COST_FILE
    from ann2snn.stages.cost import measure_direct

    torch.manual_seed(0)
    args = arguments(tmp_path)
    stages = SimpleNamespace(args=args, out=tmp_path, seconds={"sddpm": 3.0, "sddpm_rest": 1.0, "sdm": 2.0})
    shape = {"in_channels": 1, "image_size": 8, "ch": 4, "ch_mult": (1,), "num_res_blocks": 1}
    net = build_network(SDDPMConfig(**shape)).eval()
    for folder, spiking in (("sddpm", net), ("sddpm/SDM_4T", with_tsm(net))):
        (tmp_path / folder).mkdir()
        measure_direct(tmp_path / folder / COST_FILE, spiking, 1, 0, SampleConfig("ddim", steps=2).calls(net.diffusion))
        (tmp_path / folder / "snn_eval.txt").write_text(line(FD_lite=2.0))
    monkeypatch.setattr(families, "ROWS", [row for row in families.ROWS if row.folder.startswith("sddpm")])
    rows = families.collect(stages, {"sddpm": (net.config, 77)})
    assert [row["network"] for row in rows] == ["SDDPM", "SDM"] and [row["training s"] for row in rows] == [4.0, 5.0]
    assert all(row["FD"] == 2.0 and row["parameters"] == 77 and row["AC"] >= 0 for row in rows)
    assert len(families.table(rows).splitlines()) == 4
