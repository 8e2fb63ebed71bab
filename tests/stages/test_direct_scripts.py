"""SNN_train.py as a user runs it: what it writes, how it continues, and how its networks are sampled and scored."""

import json
import shutil
import signal

import pytest

from ann2snn.checkpoints import checkpoint
from ann2snn.run.rasters import load_rasters
from tests.scripts import SAMPLING, check, script
from tests.stages.direct_runs import pictures, same, training, weights
from tests.stages.test_bad_input import refused, snapshot
from tests.stages.test_parallel import LITE
from tests.stages.test_resume import assert_same_run, signal_in_training

ARCHS = pytest.mark.parametrize("arch", ["sddpm", "fsddim"])
#: What the scripts do alike for both.
EITHER = pytest.mark.parametrize("arch", ["sddpm", pytest.param("fsddim", marks=pytest.mark.slow)])
EXPORTED = ("trained_snn.pt", "cost.json", "raster.npz")


def generate(logdir, *flags, images=3):
    """The standard output of evaluate.py without a score."""
    return check(script("evaluate.py", "--sample_only", f"--logdir={logdir}", f"--num_images={images}", *flags))


# ---- training -------------------------------------------------------------------------------------------------------


@ARCHS
def test_training_leaves_a_network_its_cost_its_raster_and_pictures(direct_runs, arch):
    logdir, out = direct_runs[arch]
    grid = logdir / "images" / f"{arch.upper()}_T2.png"
    for path in (logdir / "sample" / "4.png", logdir / "real.png", logdir / "flagfile.txt", grid):
        assert path.stat().st_size > 100, path
    assert all(f"{logdir}/{name}" in out for name in ("trained_snn.pt", grid.relative_to(logdir)))
    trained, last = (checkpoint.load(logdir / name) for name in ("trained_snn.pt", "ckpt.pt"))
    assert trained.net.config == last.net.config and trained.net.diffusion == last.net.diffusion
    assert same(weights(logdir / "trained_snn.pt"), weights(logdir / "ckpt.pt"))
    assert (trained.raw["kind"], trained.raw["stage"], trained.step) == ("direct", "trained", 4)
    assert "optim" not in trained.raw and "net_model" not in trained.raw
    costs = json.loads((logdir / "cost.json").read_text())
    assert costs["calls_per_image"] == 3
    assert costs["reports"][0]["spiking"] == {"arch": arch, "spike_steps": 2, "threshold": 1.0, "tsm": False}
    rows = [json.loads(line) for line in (logdir / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and len({row["loss"] for row in rows}) == 4
    [raster, *_] = load_rasters(logdir / "raster.npz")
    assert raster.spiking.to_dict() == costs["reports"][0]["spiking"]


@EITHER
def test_the_same_command_again_trains_nothing_and_exports_the_same(direct_runs, tmp_path, arch):
    shutil.copytree(direct_runs[arch][0], tmp_path / "run")
    logdir = tmp_path / "run"
    before = {name: (logdir / name).read_bytes() for name in ("ckpt.pt", "ckpt.prev.pt", "log.jsonl", *EXPORTED)}
    out = check(script("SNN_train.py", *training(arch, logdir, 4)))
    assert "nothing left to train" in out and "trained_snn.pt" in out
    assert {name: (logdir / name).read_bytes() for name in before} == before


@EITHER
def test_an_interrupted_training_ends_as_if_it_had_not_been(direct_runs, tmp_path, arch):
    whole = direct_runs[arch][0]
    flags = training(arch, tmp_path, 4, "--sample_step=4")
    done = script("SNN_train.py", *flags, before=signal_in_training(2, signal.SIGINT))
    assert done.returncode == 130 and "run the same command to continue" in done.stdout, done.stderr
    assert weights(tmp_path / "ckpt.pt") and not [name for name in EXPORTED if (tmp_path / name).exists()]
    assert "resuming" in check(script("SNN_train.py", *flags))
    assert_same_run(whole, tmp_path)
    assert same(weights(tmp_path / "trained_snn.pt"), weights(whole / "trained_snn.pt"))
    for name in ("cost.json", "images/SDDPM_T2.png" if arch == "sddpm" else "images/FSDDIM_T2.png"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_weights_of_the_best_step_are_the_ones_exported(direct_runs, tmp_path):
    """Not those of the last: best.pt is put in place by hand, as `--eval_step` writes it."""
    shutil.copytree(direct_runs["sddpm"][0], tmp_path / "run")
    logdir = tmp_path / "run"
    other = checkpoint.read(logdir / "ckpt.prev.pt")
    checkpoint.save(logdir / "best.pt", other | {"best_score": 1.0, "best_metric": "FD_EMA"})
    assert "step 2" in check(script("SNN_train.py", *training("sddpm", logdir, 4, "--gap_images=0")))
    assert same(weights(logdir / "trained_snn.pt"), other["ema_model"])
    assert not same(other["ema_model"], weights(logdir / "ckpt.pt"))


# ---- images ---------------------------------------------------------------------------------------------------------


@EITHER
def test_a_network_and_its_training_checkpoint_give_the_same_images(direct_runs, tmp_path, arch):
    logdir, found = direct_runs[arch][0], []
    for name in ("trained_snn.pt", "ckpt.pt"):
        generate(tmp_path / name, f"--eval_model_path={logdir}/{name}", *SAMPLING, "--eta=1")
        found.append(pictures(tmp_path / name))
    assert found[0] == found[1] and len(found[0]) == 3 and len(set(found[0].values())) == 3


@EITHER
def test_a_threshold_changes_the_images_and_is_recorded(direct_runs, tmp_path, arch):
    model = f"--eval_model_path={direct_runs[arch][0]}/trained_snn.pt"
    found = {}
    for threshold in ("", "1", "0.25"):
        guidance = [f"--threshold={threshold}"] if threshold else []
        generate(tmp_path / threshold, model, *SAMPLING, *guidance)
        [settings] = (tmp_path / threshold).glob("generated/*/settings.json")
        recorded = json.loads(settings.read_text())["direct"]
        assert recorded == {"spike_steps": 2, "threshold": float(threshold or 1), "tsm": False}
        found[threshold] = (settings.parent.name, pictures(tmp_path / threshold))
        shutil.rmtree(tmp_path / threshold / "generated")
    assert found[""] == found["1"]
    assert found["0.25"][1] != found["1"][1]
    assert f"{arch}_2steps_threshold0.25_" in found["0.25"][0] and "threshold" not in found["1"][0]


def test_images_of_another_threshold_do_not_join_a_folder(direct_runs, tmp_path):
    common = [
        "--sample_only",
        f"--logdir={tmp_path}/run",
        f"--images_dir={tmp_path}/images",
        "--num_images=2",
        *SAMPLING,
    ]
    common += [f"--eval_model_path={direct_runs['sddpm'][0]}/trained_snn.pt"]
    check(script("evaluate.py", *common))
    refused(
        script("evaluate.py", *common, "--threshold=0.9"),
        "threshold=1.0, now threshold=0.9",
        "(--threshold)",
        "--images_dir",
    )


@pytest.mark.parametrize(
    ("arch", "sampler"),
    [
        ("sddpm", ["--sampler=ddpm"]),
        ("sddpm", ["--sampler=ddim", "--sampler_steps=4", "--skip_type=sddpm", "--nodenoise"]),
        ("sddpm", ["--sampler=analytic_dpm", "--sampler_steps=4"]),
        ("sddpm", ["--sampler=dpm_solver", "--sampler_steps=4"]),
        ("fsddim", ["--sampler=fsddim", "--sampler_steps=20"]),
        ("fsddim", ["--sampler=fsddim", "--sampler_steps=3"]),
        ("fsddim", ["--sampler=ddpm"]),
        ("fsddim", ["--sampler=analytic_dpm", "--sampler_steps=4"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value).replace("--", " ").strip(),
)
def test_samplers_run(direct_runs, tmp_path, arch, sampler):
    shutil.copy(direct_runs[arch][0] / "trained_snn.pt", tmp_path)
    generate(tmp_path, *sampler, "--analytic_images=4")
    assert len(set(pictures(tmp_path).values())) == 3


def test_fsddims_own_sampler_keeps_the_currents_between_the_calls(direct_runs, tmp_path):
    """Decoding after each call, as DDIM at eta 0 does, is another sampler, though the first call is the same."""
    model, found = f"--eval_model_path={direct_runs['fsddim'][0]}/trained_snn.pt", []
    for sampler in ("fsddim", "ddim"):
        generate(tmp_path / sampler, model, f"--sampler={sampler}", "--sampler_steps=4", "--noclip_x0")
        found.append(pictures(tmp_path / sampler))
    assert found[0] != found[1]


def test_analytic_statistics_belong_to_the_threshold_they_were_measured_at(direct_runs, tmp_path):
    shutil.copy(direct_runs["sddpm"][0] / "trained_snn.pt", tmp_path)
    flags = ["--sampler=analytic_dpm", "--sampler_steps=4", "--analytic_images=4"]
    assert "noise statistics" in generate(tmp_path, *flags)
    assert "noise statistics" in generate(tmp_path, *flags, "--threshold=0.5")
    assert "noise statistics" not in generate(tmp_path, *flags, "--threshold=0.5", images=4)
    assert len(list(tmp_path.glob("trained_snn.analytic_*.npz"))) == 2


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_scores_record_how_the_network_ran(direct_runs, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(direct_runs["sddpm"][0], logdir)
    scoring = [f"--fid_cache={tmp_path}/stats.npz", "--num_images=4", *LITE, *SAMPLING]
    check(script("evaluate.py", "--make_stats", "--dataset_type=fashion_mnist_10k", "--img_size=8", *scoring))
    out = check(script("SNN_train.py", "--eval", f"--logdir={logdir}", *scoring))
    assert "FD_" in out and "latency: 2 (+ " in out
    check(script("SNN_train.py", "--eval", f"--logdir={logdir}", *scoring, "--threshold=0.5"))
    plain, guided = (json.loads(line) for line in (logdir / "snn_eval.txt").read_text().splitlines())
    assert plain["arch"] == guided["arch"] == "sddpm" and plain["spiking"] is None and plain["network"] == "trained"
    assert plain["direct"] == {"spike_steps": 2, "threshold": 1.0, "tsm": False}
    assert guided["direct"] == plain["direct"] | {"threshold": 0.5}
    assert plain["checkpoint"] == checkpoint.load(logdir / "trained_snn.pt").hash
    assert plain["count"] == 4 and plain["sampler_steps"] == 3


def test_nothing_is_evaluated_where_nothing_was_trained(tmp_path, finished_run):
    refused(script("SNN_train.py", "--eval", "--sample_only", f"--logdir={tmp_path}/run"), "no checkpoint at")
    assert not (tmp_path / "run").exists()
    logdir = finished_run[0]
    before = snapshot(logdir)
    threshold = ["--threshold=0.9", "--sample_only", f"--logdir={logdir}", *SAMPLING]
    for model in ("ckpt.pt", "converted_snn.pt"):
        done = script("evaluate.py", *threshold, f"--eval_model_path={logdir}/{model}")
        refused(done, "--threshold=0.9", "no directly trained")
    assert snapshot(logdir) == before
