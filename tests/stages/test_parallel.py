"""A run computed by two processes is the run of one."""

import json
import shutil

import pytest
import torch

from tests.scripts import SAMPLING, check, four_blocks, processes, script, train_flags
from tests.stages.test_bad_input import refused

LITE = ["--extractor=lite0", "--lite0_size=32"]
#: Gradients are summed in another order: float32 rounding, amplified by a low-bit network over a few steps.
CLOSE = 1e-4


def check_all(done) -> str:
    """The main process's output; the others must have ended well, too, and said nothing."""
    out = check(done[0])
    assert all(check(other) == "" for other in done[1:])
    return out


def state(path, key="ema_model"):
    return torch.load(path, weights_only=True)[key]


def distance(a: dict, b: dict) -> float:
    """Relative L2 distance of two sets of weights."""
    flat = [torch.cat([v.double().flatten() for v in weights.values()]) for weights in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def images(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{name: logdir} of the same training by one process, by two, and by one in four parts."""
    folder = tmp_path_factory.mktemp("parallel")
    flags = ["--sample_step=6", "--sample_size=3", *SAMPLING]
    ways = {"one": (1, []), "two": (2, []), "parts": (1, ["--accumulate=4"])}
    for name, (count, extra) in ways.items():
        check_all(processes(count, "ANN_train.py", *train_flags(folder / name, 6, *flags, *extra)))
    return {name: folder / name for name in ways}


@pytest.mark.parametrize("way", ["two", "parts"])
def test_training_follows_that_of_one_process(trained, way):
    """Dropout is on: its masks, the noise and the images of a step do not depend on who computes which part."""
    one, other = trained["one"], trained[way]
    for key in ("net_model", "ema_model"):
        assert distance(state(other / "ckpt.pt", key), state(one / "ckpt.pt", key)) < CLOSE
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (one, other)]
    assert len(logs[0]) == len(logs[1]) == 6
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["step"] == b["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert (other / "sample" / "6.png").exists()


def test_without_a_common_mask_the_runs_would_differ(trained, tmp_path):
    """The tolerance above is not so wide that it would pass whatever is computed."""
    check(script("ANN_train.py", *train_flags(tmp_path, 6, "--dropout=0")))
    assert distance(state(tmp_path / "ckpt.pt"), state(trained["one"] / "ckpt.pt")) > 5 * CLOSE


def test_two_processes_resume_what_one_began_and_the_reverse(trained, tmp_path):
    """The steps 3 and 4 by two processes, those before and after by one."""
    for count, steps in ((1, 2), (2, 4), (1, 6)):
        out = check_all(processes(count, "ANN_train.py", *train_flags(tmp_path, steps)))
        assert ("resuming" in out) == (steps > 2)
    assert distance(state(tmp_path / "ckpt.pt"), state(trained["one"] / "ckpt.pt")) < CLOSE


def test_conversion_writes_the_same_files(trained, tmp_path):
    for count in (1, 2):
        shutil.copytree(trained["one"], tmp_path / str(count))
        flags = ["--eval", f"--logdir={tmp_path}/{count}", "--gen_images=3", "--gap_images=2", *SAMPLING]
        assert check_all(processes(count, "SNN_conversion.py", *flags)).count("converted_snn.pt") == 1
    one, two = tmp_path / "1", tmp_path / "2"
    assert distance(state(two / "converted_snn.pt"), state(one / "converted_snn.pt")) == 0
    for name in ("gap.json", "cost.json", "images/ANN.png", "images/SNN_T3.png", "trajectory.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            ["--ft_steps=3", "--ft_calibrate", "--ft_inputs=sampler", "--accumulate=2"], marks=pytest.mark.slow
        ),
        ["--ft_method=bptt", "--ft_steps=1", "--ft_network_steps=1", "--ft_calibrate", "--sample_step=0"],
    ],
    ids=["proxy", "bptt"],
)
def test_fine_tuning_follows_that_of_one_process(trained, tmp_path, flags):
    for count in (1, 2):
        shutil.copytree(trained["one"], tmp_path / str(count))
        common = ["--fine_tune", f"--logdir={tmp_path}/{count}", "--ft_batch_size=8", "--gap_images=0", *SAMPLING]
        check_all(processes(count, "SNN_ft.py", *common, *flags, before=four_blocks))
    one, two = (tmp_path / str(count) / "SNN_2bit_ft" for count in (1, 2))
    assert distance(state(two / "ft_state.pt"), state(one / "ft_state.pt")) < CLOSE
    a, b = (json.loads((folder / "finetune.json").read_text()) for folder in (one, two))
    assert any(block["gap_after"] < block["gap_before"] for block in a["blocks"]), "nothing was tuned"
    assert a["prediction_gap"] == pytest.approx(b["prediction_gap"], rel=1e-2)
    assert len(list((two / "model_backpacks").iterdir())) == len(list((one / "model_backpacks").iterdir()))


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    """Reference statistics made by one process and by two."""
    folder = tmp_path_factory.mktemp("stats")
    for count in (1, 2):
        flags = ["--make_stats", "--dataset_type=fashion_mnist_10k", "--img_size=8", "--num_images=150", *LITE]
        check_all(processes(count, "evaluate.py", *flags, f"--fid_cache={folder}/{count}.npz"))
    return folder


def test_statistics_are_those_of_one_process(stats):
    import numpy as np

    one, two = (np.load(stats / f"{count}.npz", allow_pickle=False) for count in (1, 2))
    assert set(one) == set(two) and int(two["count"]) == 150
    for name in ("mu", "sigma"):
        assert np.abs(one[name] - two[name]).max() < 1e-12 * np.abs(one[name]).max()


@pytest.fixture(scope="module")
def by_one(trained, stats, tmp_path_factory):
    """Images and scores by one process in batches of 11."""
    return generated(trained["one"], stats, tmp_path_factory.mktemp("images"), 1, 11)


@pytest.mark.parametrize(
    ("count", "batch"),
    [*(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 1), (1, 5), (2, 128), (4, 2))), (2, 3)],
)
def test_images_and_scores_depend_on_neither_processes_nor_batch(trained, stats, by_one, tmp_path, count, batch):
    got = generated(trained["one"], stats, tmp_path, count, batch)
    assert len(got[0]) == 70 and got[0] == by_one[0]
    assert got[1] == pytest.approx(by_one[1], rel=1e-10)


def generated(source, stats, folder, count, batch):
    """({name: bytes} of 70 images, the score's figures)."""
    flags = ["--eval", f"--logdir={folder}", f"--eval_model_path={source}/ckpt.pt", f"--images_dir={folder}/images"]
    flags += ["--num_images=70", f"--batch_size={batch}", f"--fid_cache={stats}/1.npz", *LITE, *SAMPLING, "--eta=1"]
    check_all(processes(count, "evaluate.py", *flags))
    lines = [json.loads(line) for line in (folder / "snn_eval.txt").read_text().splitlines()]
    assert len(lines) == 1 and lines[0]["processes"] == count and lines[0]["count"] == 70
    return images(folder / "images"), [v for v in lines[0].values() if isinstance(v, float) and v]


def test_scores_while_training_are_those_of_one_process(stats, tmp_path):
    found = []
    for count in (1, 2):
        flags = ["--eval_step=2", "--num_images=10", f"--fid_cache={stats}/1.npz", *LITE, *SAMPLING, "--dropout=0"]
        check_all(processes(count, "ANN_train.py", *train_flags(tmp_path / str(count), 2, *flags)))
        found.append(json.loads((tmp_path / str(count) / "snn_eval.txt").read_text()))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-2), name


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = processes(2, "ANN_train.py", *train_flags(tmp_path, 2), "--batch_size=7")
    assert 2 in [d.returncode for d in done] and 0 not in [d.returncode for d in done]
    # If one is still joining when the other leaves, torch's C++ warnings come on top; the launcher silences them.
    assert "".join(d.stderr for d in done).count("error: ") == 1, "one line, from whichever process came first"
    assert "--batch_size=7" in "".join(d.stderr for d in done)
    refused(script("ANN_train.py", *train_flags(tmp_path, 2), "--accumulate=3"), "--accumulate=3", "8 images")
    refused(script("ANN_train.py", *train_flags(tmp_path, 2), "--accumulate=0"), "--accumulate=0")
