"""The performance benchmark: its baselines do the same work, its figures are what they say, every row is there."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ann2snn.config import DiffusionConfig, SpikingConfig, TrainConfig, UNetConfig
from ann2snn.convert import convert
from ann2snn.distributed.runtime import seed_step
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from ann2snn.training.trainer import Trainer
from benchmarks import __main__ as command
from benchmarks.performance import document, memory, plan, stream, targets, timing
from benchmarks.performance.masked import MaskedDenoiser
from benchmarks.performance.networks import PUBLISHED
from benchmarks.performance.plain import PlainLoop
from benchmarks.performance.results import Bench, Case, Section
from benchmarks.performance.run import GROUPS
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TINY = dataclasses.replace(
    plan.QUICK,
    repetitions=2,
    warmup=0,
    wide=(8, 2),
    narrow=(4, 2),
    unet={"ch_mult": (1, 2), "num_res_blocks": 1, "image_size": 8, "norm_groups": 2, "diffusion_steps": 20},
    levels=(2, 3),
    stream_bits=(2,),
    sweep_bits=(2,),
    batches=(2,),
    widths=(4,),
    sampler_images=1,
)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("signed", [True, False])
def test_the_loop_with_masks_is_the_published_stream(bits, signed):
    ann = random_ann(seed=bits, bits=bits)
    x, t = random_batch(ann)
    snn = convert(ann, dataclasses.replace(PUBLISHED, signed=signed))
    with torch.no_grad():
        expected = snn(x, t)
        for whole_window in (True, False):
            masked = MaskedDenoiser(snn, whole_window)
            assert_close(masked(x, t), expected, 1e-12)
            assert_equal(masked(x, t), masked(x, t))  # a call leaves nothing behind
        assert_equal(snn(x, t), expected)  # the original still runs


def test_the_loop_with_masks_refuses_other_dynamics():
    with pytest.raises(UserError, match="published way"):
        MaskedDenoiser(convert(random_ann(), SpikingConfig("stream")))


def test_the_plain_loop_takes_the_trainers_steps():
    config = UNetConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, image_size=8, norm_groups=2, bits=32, dropout=0.0)
    diffusion, train = DiffusionConfig(), TrainConfig(batch_size=4, warmup=0, ema_decay=0.5, dropout=0.0)
    trainer = Trainer(config, diffusion, train, ALONE)
    trainer.net.train()
    net = UNet(config)
    net.load_state_dict(trainer.net.state_dict())
    plain = PlainLoop(net.train(), diffusion, train)
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        loss, _ = trainer.train_step(images)
        seed_step(train.seed, step + 1)
        assert_close(plain.step(images), loss, 1e-5)
    for ours, theirs in ((trainer.net, plain.net), (trainer.ema, plain.ema)):
        values = [torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (ours, theirs)]
        assert_close(*values, 1e-4)
    moved = [torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (plain.net, plain.ema)]
    assert not torch.allclose(*moved, rtol=1e-4)


def test_the_floor_is_every_convolution_and_linear_layer_once_on_its_own_input():
    ann = random_ann()
    x, t = random_batch(ann)
    layers = [m for m in ann.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    job = stream.convolutions(ann, x, t)
    seen = {}
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, out: seen.setdefault(layer, []).append(out))
    job()
    replayed = {layer: outs[:] for layer, outs in seen.items()}
    assert sorted(map(len, replayed.values())) == [1] * len(layers)
    with torch.no_grad():
        ann(x, t)
    for outs in seen.values():
        assert_equal(*outs)


def test_jobs_take_turns_and_warm_up_does_not_count():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.interleaved(jobs, CPU, repetitions=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in times.seconds.items()} == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="no spread"):
        timing.interleaved(jobs, CPU, repetitions=1, warmup=0)


def test_medians_quartiles_and_ratios_by_hand():
    times = timing.Times({"a": [8.0, 2.0, 4.0, 6.0, 20.0], "b": [1.0, 2.0, 1.0, 3.0, 2.0]})
    assert times.spread("a") == timing.Spread(6.0, 4.0, 8.0)
    assert times.ratio("a", "b") == timing.Spread(4.0, 2.0, 8.0)  # of 8, 1, 4, 2, 10
    assert times.ratio("a", "b", 2.0).median == 2.0


def target(at_most: bool, bound: float | None) -> targets.Target:
    return targets.Target("name", "section", "what", "cpu", bound, at_most)


@pytest.mark.parametrize(
    ("one", "ratios", "verdict", "worst"),
    [
        (target(True, 1.15), [1.0, 1.15, 0.9], targets.PASS, 1.15),
        (target(True, 1.15), [1.0, 1.16, 0.9], targets.SHORT, 1.16),
        (target(False, 2.0), [2.0, 3.0], targets.PASS, 2.0),
        (target(False, 2.0), [1.99, 3.0], targets.SHORT, 1.99),
    ],
)
def test_the_worst_case_decides_a_target(one, ratios, verdict, worst):
    line = one.line([Case(str(ratio), ratio) for ratio in ratios], "")
    assert (line["verdict"], line["measured"], line["at"]) == (verdict, worst, str(worst))


def test_a_case_may_bring_its_own_bound():
    """T = 3 with 2 settling steps may take (3 + 2 + 1) / 3 = 2 times as long, T = 7 with 1 only 9/7."""
    line = target(True, None).line([Case("T = 3", 1.9, bound=2.0), Case("T = 7", 1.3, bound=9 / 7)], "")
    assert (line["verdict"], line["at"], line["allowed"]) == (targets.SHORT, "T = 7", 1.286)


def test_what_was_not_measured_says_why():
    lines = targets.target_lines({}, "cpu", ("forward",))
    why = {(line["target"], line["device"]): line["why"] for line in lines}
    assert len(lines) == len(targets.TARGETS) == len(why)
    assert all(line["verdict"] == targets.NOT_MEASURED and line["measured"] is None for line in lines)
    assert {why[key] for key in why if key[1] == "cuda"} == {"no GPU"}
    assert why["layer_sync_time", "cpu"] == "gave no figure"
    assert why["qat_step", "cpu"] == "--only leaves out training"


@pytest.mark.slow
def test_every_group_is_timed_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "QUICK", TINY)
    monkeypatch.setattr(memory, "_child_peak", lambda bench, job: 2.0**20 * (1 + (job.kind != "ann")))
    out = tmp_path / "folder" / "performance.json"
    assert command.main(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    held, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert tuple(held["sections"]) == tuple(GROUPS)
    verdicts = {(line["target"], line["device"]): line["verdict"] for line in held["targets"]}
    assert set(verdicts) == {(one.name, one.device) for one in targets.TARGETS}
    assert {v for (_, device), v in verdicts.items() if device == "cpu"} <= {targets.PASS, targets.SHORT}
    assert {v for (_, device), v in verdicts.items() if device == "cuda"} == {targets.NOT_MEASURED}
    assert verdicts["layer_sync_memory", "cpu"] == targets.SHORT
    for one in targets.TARGETS:
        assert one.what in printed
    for section in (section for group in held["sections"].values() for section in group):
        assert section["title"] in printed
        assert all(len(row) == len(section["header"]) for row in section["rows"])
    assert {"processor", "threads", "torch", "date"} <= set(held["about"])


def test_only_some_groups(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "QUICK", TINY)
    assert command.main(["--quick", "--device", "cpu", "--only", "unets,ddim50"]) == 0
    printed = capsys.readouterr().out
    assert "not measured: --only leaves out stream" in printed
    assert "fp32 U-Net forward, ch 8, batch 2" in printed


def test_a_childs_peak_memory_covers_its_network(capsys):
    bench = Bench(dataclasses.replace(TINY, wide=(64, 1)), CPU)
    spec = {"job": {"kind": "ann", "bits": 32}, "plan": dataclasses.asdict(bench.plan), "threads": 1}
    memory._child(json.dumps(spec))
    assert int(capsys.readouterr().out) >= 0
    assert memory.resident_peak() > 2**20
    for job in (memory.Job("ann"), *memory.OTHERS.values()):
        assert memory.prepare(Bench(TINY, CPU), job)() is not None


@pytest.mark.parametrize("bad", [["--only", "speed"], ["--threads", "-1"], ["--device", "tpu"]])
def test_bad_input_is_one_line(bad, capsys):
    assert command.main(["--quick", *bad]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = """# Speed

<!-- targets -->
old
<!-- /targets -->
text
<!-- int8 -->
<!-- /int8 -->
<!-- scan -->
kept
<!-- /scan -->
"""
LINE = {"what": "a over b", "device": "cpu", "bound": "≤ 2", "measured": 1.234, "low": 1.2, "high": 1.3, "at": "T = 3"}


def test_a_page_gets_the_tables_of_the_groups_that_ran_between_their_marks():
    ran = {"int8": [Section("Title", ["what", "ms"], [["x", 1234.5], ["y", None]], note="A note.")]}
    about, line = {"processor": "C"}, LINE | {"verdict": "pass", "why": ""}
    page = document.filled(PAGE, about, [line], ran)
    head, _, rest = page.partition("text\n")
    assert head.splitlines() == [
        "# Speed",
        "",
        "<!-- targets -->",
        "processor: C",
        "",
        "| what | on | allowed | measured (quartiles) | worst at | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a over b | CPU | ≤ 2 | 1.23 (1.20–1.30) | T = 3 | pass |",
        "<!-- /targets -->",
    ]
    table = "*Title*\n\n| what | ms |\n| --- | --- |\n| x | 1.23e+03 |\n| y | – |\n\nA note."
    assert rest == f"<!-- int8 -->\n{table}\n<!-- /int8 -->\n<!-- scan -->\nkept\n<!-- /scan -->\n"
    assert document.filled(page, about, [line], ran) == page
    left_out = LINE | {"measured": None, "verdict": "not measured", "why": "--only leaves out scan"}
    assert "old" in document.filled(PAGE, about, [line, left_out], ran)


def test_the_documentation_has_a_place_for_every_table():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert {name for name in (*GROUPS, "targets") if f"<!-- {name} -->\n" in page} == {*GROUPS, "targets"}


@pytest.mark.parametrize("content", [None, b"no marks", b"\xff\xfe"])
def test_a_page_without_marks_is_refused_before_anything_is_measured(content, tmp_path, capsys):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_bytes(content)
    assert command.main(["--quick", f"--page={page}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --page={page}: ")
