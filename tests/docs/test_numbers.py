"""Numbers in README and results are those of the committed measurement."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = {(row["eta"], row["way"]): row for row in json.loads((ROOT / "docs/figures/carry.json").read_text())["rows"]}
DRIFT = json.loads((ROOT / "docs/figures/drift.json").read_text())


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
