"""Numbers in README and results are those of the committed measurement."""

import json
import re
from pathlib import Path

from benchmarks import guidance, multistep
from benchmarks.carry_table import in_full, microjoules, overview

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs/figures"
CARRY = json.loads((FIGURES / "carry.json").read_text())
#: DDIM with 50 calls and no noise.
ROWS = {row["way"]: row for row in CARRY["rows"] if (row["sampler"], row["steps"], row["eta"]) == ("ddim", 50, 0.0)}
DRIFT = json.loads((FIGURES / "drift.json").read_text())


def text(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_readmes_three_numbers_and_what_they_leave_out():
    readme, carried = text("README.md"), ROWS["layer_sync, carried"]
    skipping = ROWS["b-bit ANN, zeros skipped"]
    assert carried["worst_error"] == 0 and carried["step"] == shipped_step()
    assert f"| **{carried['share_of_rest']:.1%}** |" in readme
    shares = [
        f"{microjoules(carried, p, 'compute_pj') / microjoules(skipping, p, 'compute_pj'):.0%}"
        for p in ("fp32", "int8")
    ]
    assert f"| **{shares[0]} / {shares[1]}** |" in readme
    of = {
        name: [microjoules(row, p, "total_pj") for p in ("fp32", "int8")]
        for name, row in ROWS.items()
        if "spikes" in row
    }
    ann = [microjoules(skipping, p, "total_pj") for p in ("fp32", "int8")]
    now, before = of["layer_sync, carried"], of["layer_sync, from rest"]
    assert f"With memory it is {now[0]:.0f} µJ a call against the ANN's {ann[0]:.0f} in fp32" in readme
    assert f"and {now[1]:.0f} against {ann[1]:.0f} in int8" in readme
    dense = [microjoules(ROWS["b-bit ANN, dense"], p, "total_pj") for p in ("fp32", "int8")]
    assert f"{before[0]:.0f} µJ with memory in fp32, {before[1]:.0f} in int8" in readme
    assert all(b > d > a for b, d, a in zip(before, dense, ann, strict=True)), "costs more than its quantized ANN"


def shipped_step() -> int:
    about = json.loads((ROOT / "ann2snn/pretrained/fashion-mnist-32-4bit/config.json").read_text())
    return about["step"]


def test_the_tables_of_carrying():
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    shown = [("ddim", 50, eta) for eta in (0.0, 0.6, 1.0)]
    assert in_full(CARRY["rows"], shown) in results and overview(CARRY["rows"]) in results
    assert all(row.get("worst_error", 0) <= 1e-12 for row in CARRY["rows"] if "steps a call" not in row["way"])


def test_the_table_of_drift():
    results = text("docs/results.md").split("## A device that only adds ")[1].split(" ## ")[0]
    for row in DRIFT["rows"]:
        refresh = row["refresh"] or "never"
        errors = [f"{row[key]:.1e}" for key in ("mean_error", "worst_error")]
        shares = f"{row['levels_differing']:.2%} | {row['answer_error']:.1e} |"
        assert f"| {row['sums']} | {refresh} | {row['calls']:,} | {' | '.join(errors)} | {shares}" in results
    assert sum(results.count(f"| {kind} |") for kind in {row["sums"] for row in DRIFT["rows"]}) == len(DRIFT["rows"])
    assert f"step {DRIFT['step']:,}" in results and DRIFT["date"] in results and DRIFT["processor"] in results
    assert DRIFT["command"] in results
    exact = [row for row in DRIFT["rows"] if row["sums"] == "int32"]
    assert exact and not any(row[key] for row in exact for key in ("worst_error", "levels_differing", "answer_error"))


def stream_gap(bits: int) -> dict[str, dict]:
    """Row name → {column: value} of a committed `benchmarks.stream_gap`."""
    found = json.loads((FIGURES / f"stream_gap_{bits}bit.json").read_text())
    columns = ["network", "gap", "noise error", "spikes", "steps", "fp32", "fp32 memory", "int8", "int8 memory", "FD"]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in found["rows"]}


def test_the_sentence_about_the_published_way():
    curves = json.loads((FIGURES / "settling.json").read_text())["curves"]
    lost = {c["t"]: c["published"] for c in curves if (c["network"], c["bits"]) == ("trained", 2)}
    assert f"ends {lost[700]:.0%} (t = 700) to {lost[50]:.0%} (t = 50) away" in text("README.md").replace(" %", "%")


NAMES = {
    "quantized ANN": "quantized ANN",
    "`layer_sync`": "layer_sync",
    "`stream`": "stream",
    "`stream`, fine-tuned (`proxy`)": "stream, tuned: proxy",
    "`stream`, fine-tuned (`bptt`)": "stream, tuned: bptt",
    "`stream`, settled (`auto`)": "stream, settle auto",
}


def test_the_table_of_two_three_and_four_bits():
    lines = (ROOT / "docs/results.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    start = next(i for i, row in enumerate(table) if row[:2] == ["bits", "network"]) + 2
    bits, seen = 0, 0
    for row in table[start:]:
        if len(row) != 7:
            break
        bits = int(row[0] or bits)
        burst = re.fullmatch(r"`stream`, bursts of (\d+) in the last step", row[1])
        measured = stream_gap(bits)[f"stream, burst {burst[1]}" if burst else NAMES[row[1]]]
        expected = [f"{measured['noise error']:.4f}", "–" if measured["spikes"] is None else f"{measured['spikes']:,}"]
        assert row[4:6] == expected and row[6] == ("–" if measured["FD"] is None else f"{measured['FD']:.1f}")
        assert row[3] in ("reference", "0", f"{measured['gap']:.4f}", f"{measured['gap']:.1e}")
        assert row[3] != "0" or measured["gap"] == 0
        assert row[2] == "–" or eval(row[2].replace("×", "*")) == measured["steps"]
        seen += 1
    assert seen == 21


def test_readmes_first_commands_take_one_network_through_all_stages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("    python ANN_train.py ") :].split("\n\n")[0]
    commands = [line.split("#")[0].split() for line in block.splitlines()]
    order = ["ANN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py", "evaluate.py", "-m"]
    assert [words[1] for words in commands] == order
    files = [(ROOT / words[words.index("--flagfile") + 1]).read_text() for words in commands[:5]]
    folders = {re.search(r"^--logdir=(?:\./)?(\S+?)/?$", content, re.M)[1] for content in files}
    assert folders == {commands[-1][-1]}  # which the report reads
    assert len({bit for content in files for bit in re.findall(r"^--bit=(\d+)", content, re.M)}) == 1


def test_the_table_of_dead_zones():
    results, found = (
        (ROOT / "docs/results.md").read_text(encoding="utf-8"),
        json.loads((FIGURES / "dead_zone.json").read_text()),
    )
    for row in found["rows"]:
        cells = (
            f"| {row['zone']:g} | {row['spikes']:,.0f} | {row['share']:.0%} | {row['error']:.1%} | {row['score']:.1f} |"
        )
        assert cells in results
    assert found["rows"][0]["error"] == 0 and found["command"] in results


def test_the_table_of_steps_a_call():
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    found = json.loads((FIGURES / "carry_steps.json").read_text())
    assert found["command"] in results
    for row in found["rows"]:
        if "spikes" in row and row["way"] != "layer_sync, from rest":
            cells = [row["way"], f"{row['share_of_rest']:.1%}", f"{row['steps_run']:.2f}", f"{row['worst_error']:.1e}"]
            assert f"| {' | '.join(cells)} | {row['score']:.1f} |" in results


def test_the_table_of_combined_predictions():
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    section = results.split("### Rounded activations ")[1].split("###")[0]
    rows = json.loads((FIGURES / "multistep.json").read_text())["rows"]
    table = multistep.table(rows)
    assert table in section and {row["step"] for row in rows} == {shipped_step()}
    words = section.replace(table, "")
    told = re.findall(r"\b\d+\.\d\b", words[words.index("* Rounding") :])
    assert len(told) == 11 and set(told) <= {f"{row['score']:.1f}" for row in rows}


def test_what_guidance_costs():
    rows = guidance.read_rows(FIGURES / "guidance.json")
    assert guidance.table(rows).strip() in (ROOT / "docs/classes.md").read_text(encoding="utf-8")
    assert all(row["worst_error"] == 0 for row in rows)


def test_the_scores_of_the_networks_that_ship():
    page = (ROOT / "docs/pretrained.md").read_text(encoding="utf-8")
    for line in json.loads((FIGURES / "pretrained.json").read_text())["lines"]:
        bits, real, told = line["bits"], line["sampler"] is None, line["network"] == "class-conditional"
        how = "–" if real else f"{line['sampler']} {line['sampler_steps']}, {line['eta']:g}"
        name = "the data set (test)" if real else f"{bits} bits" + ", class-conditional, the classes in turn" * told
        assert f"| {name} | {how} | {line['count']:,} | {line['FD_efficientnet_lite0']:.1f} |" in page
        folder = ROOT / f"ann2snn/pretrained/fashion-mnist-32-{'classes' if told else f'{bits}bit'}"
        assert real or line["step"] == json.loads((folder / "config.json").read_text())["step"]


def test_the_table_of_quantizing_and_training_on():
    measured = json.loads((FIGURES / "ptq.json").read_text())
    text, rows = (ROOT / "docs/models.md").read_text(), measured["rows"]
    for quantized, trained in zip(rows[::2], rows[1::2], strict=True):
        assert (quantized["way"], trained["way"]) == ("quantized", "trained")
        cells = [f"{row[column]:.4g}" for column in ("loss", "error", "distance") for row in (quantized, trained)]
        assert f"| {quantized['bits']} | {' | '.join(cells)} |" in text
    assert f"as many real test images have {measured['about']['real_distance']:.1f}" in text


def test_the_table_of_norms():
    text = (ROOT / "docs/hardware.md").read_text()
    for row in json.loads((FIGURES / "norms.json").read_text())["rows"]:
        name = row["norm"] if row["bins"] == 1 else f"{row['norm']}, {row['bins']} bins"
        assert f"| {name} | {row['loss']:.4g} | {row['distance']:.4g} | {row['gap']:g} |" in text
