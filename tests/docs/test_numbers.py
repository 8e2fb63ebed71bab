"""Numbers in README and results are those of the committed measurement."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs/figures"
ROWS = {(row["eta"], row["way"]): row for row in json.loads((FIGURES / "carry.json").read_text())["rows"]}
DRIFT = json.loads((FIGURES / "drift.json").read_text())


def text(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def microjoules(row: dict, prices: str, part: str) -> float:
    return row["energy"][prices][part] / 1e6


def test_the_sentence_about_carrying():
    carried, rest = ROWS[0.0, "layer_sync, carried"], ROWS[0.0, "layer_sync, from rest"]
    skipping, readme = ROWS[0.0, "b-bit ANN, zeros skipped"], text("README.md")
    arithmetic = microjoules(carried, "fp32", "compute_pj") / microjoules(rest, "fp32", "compute_pj")
    assert f"for {carried['share_of_rest']:.1%} of the spikes and {arithmetic:.0%} of the arithmetic energy" in readme
    for prices in ("fp32", "int8"):
        pair = [microjoules(row, prices, "total_pj") for row in (carried, skipping)]
        assert f"({pair[0]:.0f} against {pair[1]:.0f}" in readme
    assert carried["worst_error"] == 0


def test_the_table_of_carrying():
    results = text("docs/results.md")
    for (eta, _), row in ROWS.items():
        energies = [microjoules(row, "fp32", part) for part in ("compute_pj", "total_pj")]
        assert f"| {eta:g} | " in results and f"{energies[0]:.1f} | {energies[1]:.1f} |" in results
        if "spikes" in row:
            shares = " | ".join(
                f"{row[key]:.1%}" for key in ("share_of_rest", "carried_share_of_rest", "carried_ac_share")
            )
            assert f"{row['spikes']:,.0f} | {shares}" in results


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


def test_from_rest_the_spiking_network_costs_more_and_readme_says_so():
    readme = text("README.md")
    ways = ("layer_sync, from rest", "b-bit ANN, dense", "b-bit ANN, zeros skipped")
    for prices, words in (
        ("fp32", "{:.0f} µJ against the ANN's {:.0f}, or {:.0f} where"),
        ("int8", "{:.0f} against {:.0f} or {:.0f} in int8"),
    ):
        rest, dense, skipping = (microjoules(ROWS[0.0, way], prices, "total_pj") for way in ways)
        assert rest > dense > skipping and words.format(rest, dense, skipping) in readme
    rows = stream_gap(2)
    stream, ann = (rows[name]["fp32 memory"] for name in ("stream", "quantized ANN"))
    assert stream > ann and f"{stream:,.0f} µJ against {ann:.0f}" in readme


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
    """Every row of README's, in full."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
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
