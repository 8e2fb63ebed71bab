"""Bad input ends with one line that names the cause and the cure, exit code 2, and nothing changed on disk."""

import os
import stat

import pytest
import torch

from tests.scripts import SAMPLING, check, script, train_flags

ACTIONS = [("SNN_conversion.py", "--eval"), ("SNN_ft.py", "--fine_tune"), ("evaluate.py", "--sample_only")]


class Malicious:
    """A pickle that would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def refused(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def snapshot(folder):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bit=9"], ["--bit=9", "2 to 8"]),
        (["--bit=2.5"], ["--bit=2.5", "whole number"]),
        (["--ch_mult=4"] * 3, ["--ch_mult=1,2,4,4,4", "appends"]),
        (["--img_size=15"], ["--img_size=15", "multiple of 2"]),
        (["--norm_groups=3"], ["--norm_groups=3", "--ch=8"]),
        (["--dropout=1"], ["--dropout"]),
        (["--mean_type=score"], ["mean_type"]),
        (["--sampler_steps=0", "--sampler=ddim"], ["--sampler_steps=0"]),
        (["--sampler_steps=51", "--sampler=ddim"], ["--sampler_steps=51", "50 diffusion steps"]),
        (["--lr=-1"], ["--lr"]),
        (["--lr=abc"], ["lr"]),
        (["--act_init=none"], ["--act_init=none", "calibrate"]),
        (["--dataset_type=imagenet"], ["imagenet", "fashion_mnist_10k"]),
        (["--dataset_type=folder", "--data_dir=no/such/folder"], ["no/such/folder"]),
        (["--sampel_step=3"], ["--sampel_step", "did you mean --sample_step"]),
        (["loose"], ["loose"]),
        (["--export=new"], ["--export=new", "SNN_conversion.py"]),
        (["--export_program=new.pt2"], ["--export_program=new.pt2", "SNN_conversion.py"]),
        (["--export_onnx=new.onnx"], ["--export_onnx=new.onnx", "SNN_conversion.py"]),
        (["--score=a", "--against=b"], ["--score=a", "evaluate.py"]),
        (["--kid"], ["--kid", "evaluate.py"]),
        (["--dataset_type=folder", "--data_dir="], ["--data_dir=: is empty"]),
        (["--logdir="], ["--logdir=: is empty"]),
        (["--wandb="], ["--wandb=: is empty"]),
        (["--flagfile=no/such/file.txt"], ["no/such/file.txt"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else "",
)
def test_bad_flag_is_refused_before_anything_is_written(tmp_path, flags, words):
    logdir = tmp_path / "run"
    refused(script("ANN_train.py", *train_flags(logdir, 2), *flags), *words)
    assert not logdir.exists()


@pytest.mark.parametrize("name", ["ANN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"])
def test_script_without_its_action_says_which_flag_it_wants(name, tmp_path):
    refused(script(name, f"--logdir={tmp_path}/run"), "nothing to do: add --")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX only")
def test_unwritable_logdir_is_named(tmp_path):
    logdir = tmp_path / "file"
    logdir.write_text("in the way")
    refused(script("ANN_train.py", *train_flags(logdir / "run", 2)), "cannot write", "--logdir")
    assert logdir.read_text() == "in the way"
    if os.geteuid() != 0:  # root writes anywhere
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
        refused(script("ANN_train.py", *train_flags(locked, 2)), "cannot write", "--logdir")


def test_missing_checkpoint(tmp_path):
    for name, action in (
        ("SNN_conversion.py", "--eval"),
        ("SNN_ft.py", "--fine_tune"),
        ("evaluate.py", "--sample_only"),
    ):
        refused(script(name, action, f"--logdir={tmp_path}/run"), "no checkpoint at", "run the earlier stage")
        assert not (tmp_path / "run").exists()


def test_broken_checkpoints_are_refused_by_every_stage_and_left_alone(tmp_path, finished_run):
    source = (finished_run[0] / "ckpt.pt").read_bytes()
    proof = tmp_path / "executed"
    payload = torch.load(finished_run[0] / "ckpt.pt", weights_only=True)
    files = {
        "truncated": source[: len(source) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
    }
    torch.save({"ema_model": Malicious(proof)}, tmp_path / "malicious.pt")
    files["malicious"] = (tmp_path / "malicious.pt").read_bytes()
    payload["ema_model"]["head.weight"] = payload["ema_model"]["head.weight"] * float("nan")
    torch.save(payload, tmp_path / "nan.pt")
    files["nan"] = (tmp_path / "nan.pt").read_bytes()
    for label, content in files.items():
        logdir = tmp_path / label
        logdir.mkdir()
        (logdir / "ckpt.pt").write_bytes(content)
        (logdir / "converted_snn.pt").write_bytes(b"earlier result")
        before = snapshot(logdir)
        refused(script("SNN_conversion.py", "--eval", f"--logdir={logdir}", *SAMPLING), "ckpt.pt")
        refused(script("SNN_ft.py", "--fine_tune", f"--logdir={logdir}", *SAMPLING), "ckpt.pt")
        path = f"--eval_model_path={logdir}/ckpt.pt"
        refused(script("evaluate.py", "--sample_only", f"--logdir={logdir}", path, *SAMPLING), "ckpt.pt")
        assert snapshot(logdir) == before
    assert not proof.exists()


@pytest.mark.parametrize(
    "flag",
    ["--timestep=5", "--decay=0.5", "--tsm", "--surrogate=atan", "--block_size=2", "--soft_reset", "--corrections=tail"]
    + ["--linear_first", "--settle_steps=3", "--burst=2", "--nosigned", "--stream_norm=per_step", "--schedule=stream"],
)
def test_settings_that_the_network_does_not_have_are_refused(finished_run, tmp_path, flag):
    flags = ["--sample_only", "--num_images=1", f"--eval_model_path={finished_run[0]}/ckpt.pt", *SAMPLING]
    name = flag.partition("=")[0].replace("--no", "--")
    refused(script("evaluate.py", *flags, f"--logdir={tmp_path}/run", flag), name)
    assert not (tmp_path / "run").exists()


def test_what_a_flagfile_says_of_other_commands_is_theirs(finished_run, tmp_path):
    file = tmp_path / "all.txt"
    file.write_text("--export=new\n--kid\n--strength=0.2\n--interpolate=1,2\n--drawn_images=2\n--settle_steps=0\n")
    flags = [
        f"--flagfile={file}",
        f"--eval_model_path={finished_run[0]}/ckpt.pt",
        f"--logdir={tmp_path}/run",
        *SAMPLING,
    ]
    assert "from seed 1 to seed 2" in check(script("evaluate.py", *flags))


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--bit=3", ["--bit=3", "with 2"]), ("--ch=16", ["--ch=16", "with 8"]), ("--T=60", ["--T=60", "with 50"])],
)
def test_flag_that_contradicts_the_checkpoint_names_both_values(finished_run, flag, words):
    logdir, _ = finished_run
    before = snapshot(logdir)
    for name, action in (
        ("SNN_conversion.py", "--eval"),
        ("SNN_ft.py", "--fine_tune"),
        ("evaluate.py", "--sample_only"),
    ):
        refused(script(name, action, f"--logdir={logdir}", flag, *SAMPLING), *words)
    assert snapshot(logdir) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--settle_steps=2"], ["layer_sync has nothing to settle"]),
        (["--schedule=stream", "--settle_steps=soon"], ["--settle_steps=soon", "auto"]),
        (["--schedule=stream", "--settle_steps=auto", "--stream_norm=per_step"], ["cumulative"]),
    ],
)
def test_impossible_spiking_settings(finished_run, flags, words):
    refused(script("SNN_conversion.py", "--eval", f"--logdir={finished_run[0]}", *flags, *SAMPLING), *words)


def test_fine_tuning_layer_sync_is_refused(finished_run):
    done = script("SNN_ft.py", "--fine_tune", f"--logdir={finished_run[0]}", "--schedule=layer_sync", *SAMPLING)
    refused(done, "equals the quantized network already")


def test_scoring_needs_statistics_of_the_same_extractor_before_it_samples(finished_run, tmp_path):
    logdir, _ = finished_run
    flags = ["--eval", f"--logdir={logdir}", "--num_images=3", "--seed=5", *SAMPLING, "--extractor=lite0"]
    before = snapshot(logdir)
    refused(script("evaluate.py", *flags, "--lite0_size=32", "--fid_cache=no/such.npz"), "no/such.npz")
    other = script("evaluate.py", *flags, "--lite0_size=64", f"--fid_cache={logdir}/stats.npz")
    refused(other, "efficientnet-lite0-1280@32px", "efficientnet-lite0-1280@64px")
    assert snapshot(logdir) == before


def test_statistics_are_not_overwritten(finished_run):
    stats = finished_run[0] / "stats.npz"
    before = stats.read_bytes()
    flags = ["--dataset_type=fashion_mnist_10k", "--extractor=lite0", f"--fid_cache={stats}"]
    refused(script("evaluate.py", "--make_stats", *flags), "exists")
    assert stats.read_bytes() == before


def test_broken_image_in_a_folder_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    flags = ["--dataset_type=folder", f"--data_dir={tmp_path}/images"]
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 2), *flags), "broken.png")


def test_missing_inception_weights_name_the_file_and_the_way_out(finished_run, tmp_path):
    flags = ["--eval", f"--logdir={finished_run[0]}", "--num_images=3", *SAMPLING]
    done = script("evaluate.py", *flags, f"--inception_weights={tmp_path}/none.pth")
    refused(done, "none.pth")
