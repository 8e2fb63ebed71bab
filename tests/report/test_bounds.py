"""Files of any length are reported on at once, and say what was left out."""

import json
import time

import pytest

from ann2snn.config import SpikingConfig
from ann2snn.report.__main__ import main
from benchmarks.stream_gap import scores


def block(name: str, error: float = 0.1) -> dict:
    return {"block": name, "error": error, "firing_rate": 0.1, "negative_share": 0.0}


def report(*names: str, error: float = 0.1) -> dict:
    rows = [block(name, error) for name in (*names, "prediction")]
    how = {"label": "stream", "spiking": SpikingConfig("stream").to_dict(), "settle_steps": 0, "spikes_per_image": 1.0}
    return how | {"blocks": rows}


def score(**fields: object) -> str:
    common = {"network": "trained", "spiking": None, "count": 10, "extractor": "x", "sampler": "ddim", "seed": 0}
    return json.dumps(common | fields) + "\n"


LONG = {
    "blocks": ("gap.json", lambda: json.dumps({"reports": [report(*(f"b{i}" for i in range(20_000)))]}), "500 blocks"),
    "reports": ("gap.json", lambda: json.dumps({"reports": [report("a")] * 5_000}), "4,900 of 5,000 reports"),
    "networks": (
        "snn_eval.txt",
        lambda: "".join(score(network=f"net{i}", FID=i + 0.5) for i in range(20_000)),
        "newest 200 of 20,000",
    ),
    "losses": (
        "log.jsonl",
        lambda: (
            "".join(json.dumps({"stage": "train", "step": i, "loss": (-1) ** i * 1e308}) + "\n" for i in range(50))
            + json.dumps({"stage": "train", "step": 50, "loss": 0.5})
        ),
        "",
    ),
    "errors": ("gap.json", lambda: json.dumps({"reports": [report("a", "b", error=1e308)]}), ""),
    "scores": ("snn_eval.txt", lambda: score(FID=1e308) + score(FID=-1e308, seed=1), ""),
}


@pytest.mark.parametrize("case", LONG)
def test_a_report_is_made_of_files_of_any_length_and_size_of_numbers(tmp_path, capsys, case):
    name, content, note = LONG[case]
    (tmp_path / name).write_text(content())
    start = time.process_time()
    assert main([str(tmp_path)]) == 0
    assert time.process_time() - start < 20
    assert note in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_the_benchmarks_column_of_scores_has_been_measured_in_one_way(tmp_path, capsys):
    snn = {"network": "converted", "spiking": SpikingConfig("stream").to_dict(), "checkpoint": "b"}
    ann, lines = {"checkpoint": "a"}, []
    lines += [score(**ann, FID=1.0, count=50), score(**ann, FID=2.0), score(**snn, FID=3.0), score(**ann, FID=2.5)]
    lines += [score(**snn, FID=4.0, sampler="dpmpp"), score(**snn, FD_efficientnet_lite0=5.0, extractor="y")]
    (tmp_path / "snn_eval.txt").write_text("".join(lines))
    found = scores(tmp_path)
    assert sorted(found.values()) == [2.5, 3.0] and {checkpoint for checkpoint, _ in found} == {"a", "b"}
    assert "3 measured in other ways are left out" in capsys.readouterr().out
    (tmp_path / "snn_eval.txt").write_text(score(**ann, FID=1.0) + score(**ann, FID=2.0, seed=3))
    assert list(scores(tmp_path).values()) == [2.0], "of equals the newest"
