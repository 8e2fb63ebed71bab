"""--power_ema in training, --sigma_rel and --search_sigma_rel after it: bit exact, and none of another run."""

import json
import math
import os
import shutil
import signal

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.power import power_average
from ann2snn.cli import widths
from ann2snn.diffusion.power_ema import gamma_of
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.training.trainer import Trainer
from tests.helpers import slow
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.test_resume import assert_same_run, signal_in_training

POWER = ("--power_ema=0.05,0.1,0.15", "--power_ema_step=2")
WIDTHS = (0.05, 0.1, 0.15)


def keep_steps(path):
    """Write the weights of every step of a training of 8 to a file, quantizers' clip values among them."""

    def before():
        seen, update = [], Trainer.update_ema

        def updated(self):
            update(self)
            seen.append({name: value.double().clone() for name, value in self.net.named_parameters()})
            torch.save(seen, path)

        Trainer.update_ema = updated

    return before


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power") / "run"
    steps = keep_steps(folder.with_name("steps.pt"))
    return folder, check(script("ANN_train.py", *train_flags(folder, 8, *POWER), before=steps))


def averages(folder) -> list[dict]:
    return torch.load(folder / "ckpt.pt", weights_only=True)["power_ema"]["averages"]


def snapshots(folder) -> list[str]:
    return sorted(path.name for path in (folder / "power_ema").iterdir())


def test_snapshots_are_announced_with_their_size_and_kept(run):
    folder, said = run
    assert snapshots(folder) == sorted(f"{sigma}_{step}.pt" for sigma in WIDTHS for step in (2, 4, 6, 8))
    told = next(line for line in said.splitlines() if "power_ema" in line)
    assert "4 snapshots of --power_ema=0.05,0.1,0.15" in told and "GB of" in told
    state = checkpoint.read(folder / "power_ema" / "0.1_8.pt")["ema_model"]
    inside = averages(folder)[1]
    assert all(torch.equal(state[name], inside[name]) for name in state)


def test_a_killed_training_ends_with_the_same_averages_and_snapshots(run, tmp_path):
    folder, killed = run[0], tmp_path / "killed"
    done = script("ANN_train.py", *train_flags(killed, 8, *POWER), before=signal_in_training(7, signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL and "0.05_6.pt" in snapshots(killed)  # later than its checkpoint
    check(script("ANN_train.py", *train_flags(killed, 8, *POWER)))
    assert_same_run(folder, killed)
    assert snapshots(folder) == snapshots(killed)


def test_the_average_of_every_parameter_is_the_sum_over_all_steps(run):
    steps = torch.load(run[0].with_name("steps.pt"))
    assert any(name.endswith("act_alpha") for name in steps[0])
    for sigma, averaged in zip(WIDTHS, averages(run[0]), strict=True):
        shares = ((torch.arange(9, dtype=torch.float64) / 8) ** (gamma_of(sigma) + 1)).diff()
        for name in steps[0]:
            wanted = sum(share * step[name] for share, step in zip(shares, steps, strict=True))
            torch.testing.assert_close(averaged[name].double(), wanted, rtol=1e-6, atol=1e-7)


def test_an_average_built_after_training_is_the_one_tracked_in_it(run, tmp_path):
    """Built of the narrower two, against the third: within what the theory leaves of the way of the weights."""
    shutil.copytree(run[0] / "power_ema", tmp_path / "power_ema")
    raw, tracked = checkpoint.read(run[0] / "ckpt.pt"), averages(run[0])[2]
    kept = raw["power_ema"]
    listed = [entry for entry in kept["snapshots"] if entry[0] != 0.15]
    two = {"sigma_rel": [0.05, 0.1], "averages": kept["averages"][:2], "snapshots": listed}
    checkpoint.save(tmp_path / "ckpt.pt", raw | {"power_ema": two})
    built = power_average(tmp_path / "ckpt.pt", 0.15, tmp_path / "power_ema")
    state, steps = built.loaded.net.state_dict(), torch.load(run[0].with_name("steps.pt"))
    gamma = gamma_of(0.15)
    norm = (gamma + 1) / math.sqrt((2 * gamma + 1) * 8)
    assert built.used == 6 and built.missing == 0 and 0 < built.distance < 0.15
    for name in steps[0]:
        way = torch.stack([step[name] - steps[0][name] for step in steps]).pow(2).sum(dim=0).sqrt()
        off = (state[name].double() - tracked[name].double()).abs()
        assert (off <= built.distance * norm * way + 1e-6).all(), name  # Cauchy and Schwarz
    again = ann2snn.load(run[0] / "ckpt.pt", sigma_rel=0.15).state_dict()  # one that was kept
    assert all(torch.allclose(again[name], tracked[name], rtol=1e-5, atol=1e-6) for name in tracked)


@pytest.mark.slow
def test_the_scripts_take_the_average_and_the_search_names_the_best(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    search = ["--search_sigma_rel=loss", "--num_images=64", "--num_threads=1", f"--logdir={folder}"]
    said = check(script("evaluate.py", *search))
    line = json.loads((folder / "power_ema.jsonl").read_text())
    assert line["best"] == min(line["found"], key=lambda pair: pair[1])[0] and f"--sigma_rel={line['best']:g}" in said
    sigma = f"--sigma_rel={line['best']:g}"
    chosen = ("--num_images=2", "--sample_only", *SAMPLING, f"--logdir={folder}", sigma)
    assert "its profile is off by" in check(script("evaluate.py", *chosen))
    assert any(f"_power{line['best']:g}_" in path.name for path in (folder / "generated").iterdir())
    scored = ("--extractor=lite0", "--num_images=8", f"--fid_cache={tmp_path}/stats.npz", "--num_threads=1")
    check(script("evaluate.py", "--make_stats", *scored, "--dataset_type=fashion_mnist_10k", "--img_size=8"))
    check(script("evaluate.py", "--search_sigma_rel=score", *scored, *SAMPLING, f"--logdir={folder}"))
    line = json.loads((folder / "power_ema.jsonl").read_text().splitlines()[1])
    assert {"sampler_options", "eta", "clip_x0", "var_type"} <= line.keys(), "all that the figure depends on"
    sigma = f"--sigma_rel={line['best']:g}"
    check(script("evaluate.py", "--eval", *scored, *SAMPLING, f"--logdir={folder}", sigma))
    score = json.loads((folder / "snn_eval.txt").read_text())
    assert dict(line["found"])[line["best"]] == score["FD_efficientnet_lite0"] and line["figure"] == "distance"
    more = ("--eval", f"--logdir={folder}", sigma, "--gap_images=0", "--gen_images=0", *SAMPLING)
    check(script("SNN_conversion.py", *more))
    converted = checkpoint.load(folder / "converted_snn.pt")
    assert converted.raw["weights"] == f"power{line['best']:g}"
    built = ann2snn.load(folder / "ckpt.pt", sigma_rel=line["best"]).state_dict()
    assert all(torch.equal(value, built[name]) for name, value in converted.unet.state_dict().items())


@pytest.mark.slow
def test_a_search_that_was_killed_measures_no_width_twice(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    search = ["--search_sigma_rel=loss", "--num_images=8", "--num_threads=1", f"--logdir={tmp_path / 'run'}"]

    def counting(last: int):
        def before():
            from ann2snn.cli import widths

            measure = widths.mean_loss

            def counted(*given):
                with open(tmp_path / "measured", "a") as file:
                    file.write("x")
                if (tmp_path / "measured").stat().st_size == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return measure(*given)

            widths.mean_loss = counted

        return before

    assert script("evaluate.py", *search, before=counting(4)).returncode == -signal.SIGKILL
    again = check(script("evaluate.py", *search, before=counting(0)))
    found = json.loads((tmp_path / "run/power_ema.jsonl").read_text())["found"]
    assert (tmp_path / "measured").stat().st_size == 1 + len(found) and again.count("--sigma_rel=") == 1 + len(found)
    assert not list((tmp_path / "run").glob("*begun*"))


def test_figures_of_a_search_are_known_to_one_with_the_same_settings_alone(tmp_path):
    begun = widths._Begun(tmp_path / "begun", {"seed": 0, "pair": (1, 2)}, ALONE)
    begun.keep(0.1, 3, 0.5)
    begun.keep(0.2, 3, math.inf)
    with open(tmp_path / "begun", "a") as file:
        file.write('{"settings": {"seed": 0, "pair": [1, 2]}, "found": [0.3, 3, "x"]}\n[1]\n{"found": 3}\n')
    assert widths._Begun(tmp_path / "begun", {"seed": 0, "pair": (1, 2)}, ALONE).found == {(0.1, 3): 0.5}
    assert widths._Begun(tmp_path / "begun", {"seed": 1, "pair": (1, 2)}, ALONE).found == {}


def refused(*flags: str, name: str = "evaluate.py") -> str:
    done = script(name, *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    return done.stderr


def test_a_new_training_in_the_folder_overwrites_no_snapshot_and_mixes_with_none(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    for name in ("ckpt.pt", "ckpt.prev.pt"):
        os.remove(folder / name)
    before = (folder / "power_ema" / "0.1_4.pt").read_bytes()
    check(script("ANN_train.py", *train_flags(folder, 8, *POWER, "--seed=1")))
    place, aside = folder / "power_ema" / "0.1_4.pt", folder / "power_ema" / "0.1_4.prev.pt"
    assert aside.read_bytes() == before != place.read_bytes()
    ann2snn.load(folder / "ckpt.pt", sigma_rel=0.2)

    flags = ("--sample_only", "--num_images=1", f"--logdir={folder}", "--sigma_rel=0.2")
    os.replace(aside, place)
    assert "0.1_4.pt: it is not the snapshot that" in refused(*flags)
    place.write_bytes(before[:500])
    assert "0.1_4.pt: " in refused(*flags)
    place.unlink()
    assert "(1 more are not there)" in check(script("evaluate.py", *flags, *SAMPLING))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sigma_rel", value) for value in ([0.05, 0.1, 0.5], ["a", "b", "c"])),
        *(("averages", value) for value in (None, [{"head.weight": 1}] * 3)),
        *(("snapshots", value) for value in ([[0.05, 9, "sha256:1"]], [[[], {}, []]])),
        ("step", "8"),
        *(slow("sigma_rel", value) for value in (None, [0.05])),
        *(slow("averages", value) for value in ([], [{}, {}, {}])),
        *(slow("snapshots", value) for value in (None, [[0.05, 4]], [[0.2, 4, "sha256:1"]], [[0.05, 4, 1]])),
        slow("snapshots", [[0.05, "4", "sha256:1"]]),
    ],
)
def test_a_checkpoint_with_other_averages_than_a_training_writes_is_refused(run, tmp_path, name, value):
    raw = checkpoint.read(run[0] / "ckpt.pt")
    changed = {name: value} if name == "step" else {"power_ema": raw["power_ema"] | {name: value}}
    checkpoint.save(tmp_path / "ckpt.pt", raw | changed)
    with pytest.raises(UserError, match="refusing .*ckpt.pt: "):
        power_average(tmp_path / "ckpt.pt", 0.1, tmp_path)


def test_an_average_of_another_network_is_refused(run, tmp_path):
    raw = checkpoint.read(run[0] / "ckpt.pt")
    name = next(iter(raw["ema_model"]))
    for state in ({"other": torch.zeros(1)}, raw["ema_model"] | {name: torch.zeros(3, 3)}):
        kept = raw["power_ema"] | {"averages": [state] * 3, "snapshots": []}
        checkpoint.save(tmp_path / "ckpt.pt", raw | {"power_ema": kept})
        with pytest.raises(UserError, match="of its network"):
            power_average(tmp_path / "ckpt.pt", 0.2, tmp_path)


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("ANN_train.py", ["--power_ema=0.4"], "--power_ema=0.4: use 0.005 to 0.28"),
        ("ANN_train.py", ["--power_ema=wide"], "--power_ema="),
        ("ANN_train.py", ["--power_ema_step=3"], "only with --power_ema"),
        ("ANN_train.py", ["--sigma_rel=0.1"], "only evaluate.py and SNN_conversion.py do that"),
        ("evaluate.py", ["--eval", "--sigma_rel=0.3"], "use 0.005 to 0.28"),
        ("evaluate.py", ["--search_sigma_rel=loss", "--sigma_rel=0.1"], "not with --search_sigma_rel"),
    ],
)
def test_flags_that_nothing_can_be_done_with(run, tmp_path, name, flags, words):
    shutil.copy(run[0] / "ckpt.pt", tmp_path)
    if name == "ANN_train.py":
        flags = [*train_flags(tmp_path, 16), *flags]
    assert words in refused(*flags, f"--logdir={tmp_path}", name=name)


def test_averages_cannot_begin_or_end_in_the_middle(run, tmp_path):
    shutil.copy(run[0] / "ckpt.pt", tmp_path)
    assert "power_ema=0.05,0.1,0.15, now power_ema=none" in refused(*train_flags(tmp_path, 16), name="ANN_train.py")
    assert "train with --power_ema" in refused(
        "--sample_only", "--sigma_rel=0.1", "--eval_model_path=fashion-mnist-32-4bit", f"--logdir={tmp_path}"
    )
