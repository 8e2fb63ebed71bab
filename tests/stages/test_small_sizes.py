"""Sizes of 0 and 1 that a flag's limits allow do what they say, or are refused before anything is computed."""

import torch

from tests.helpers import random_ann
from tests.scripts import SAMPLING, check, four_blocks, script, train_flags
from tests.stages.test_bad_input import refused, snapshot

LITE = ["--extractor=lite0", "--lite0_size=32"]


def test_no_images_in_grids(tmp_path):
    run = tmp_path / "run"
    flags = ["--sample_size=0", "--sample_step=1", *SAMPLING]
    check(script("ANN_train.py", *train_flags(run, 2, *flags)))
    assert not (run / "sample").exists() and not (run / "real.png").exists()
    common = [f"--logdir={run}", "--sample_only", "--num_images=1", *SAMPLING]
    check(script("evaluate.py", *common, "--pic_or_not", "--gen_images=0"))
    assert not (run / "images").exists() and len(list(run.glob("generated/*/*.png"))) == 1
    check(script("SNN_conversion.py", "--eval", f"--logdir={run}", "--gen_images=0", "--gap_images=0", *SAMPLING))
    tuning = [
        "--fine_tune",
        f"--logdir={run}",
        "--ft_steps=1",
        "--ft_batch_size=2",
        "--sample_size=0",
        "--gap_images=0",
    ]
    check(script("SNN_ft.py", *tuning, before=four_blocks))
    before = snapshot(run)
    scored = [f"--logdir={run}", "--eval", "--num_images=1", *LITE, *SAMPLING]
    fake = [f"--fid_cache={run}/none.npz"]
    refused(script("evaluate.py", *scored, *fake), "--num_images=1", "at least 2", "--sample_only")
    refused(script("ANN_train.py", *scored, *fake), "--num_images=1", "at least 2")
    refused(script("evaluate.py", *scored, *fake, "--score_data"), "--num_images=1", "at least 2")
    refused(script("evaluate.py", *scored, *fake, "--make_stats"), "--num_images=1", "at least 2")
    training = train_flags(tmp_path / "other", 2, "--eval_step=1", *LITE, *fake, *SAMPLING)
    refused(script("ANN_train.py", *training, "--num_images=1"), "--num_images=1", "at least 2")
    assert snapshot(run) == before


def test_no_bar_is_drawn_where_there_is_no_terminal(tmp_path):
    done = script("ANN_train.py", *train_flags(tmp_path / "run", 3, "--sample_size=2", "--sample_step=2", *SAMPLING))
    assert done.returncode == 0 and done.stderr == ""
    flags = [f"--logdir={tmp_path}/run", "--sample_only", "--num_images=2", "--trajectory", *SAMPLING]
    assert script("evaluate.py", *flags).stderr == ""


def test_groups_of_a_file_that_does_not_tell_them_are_those_of_the_flag(tmp_path):
    """The published layout: shapes do not show how many groups a norm has."""
    net = random_ann(ch=32, norm_groups=4, image_size=8).float()
    torch.save({"ema_model": net.state_dict(), "net_model": net.state_dict()}, tmp_path / "ckpt.pt")
    common = [f"--logdir={tmp_path}", f"--eval_model_path={tmp_path}/ckpt.pt", "--bit=2", "--img_size=8", *SAMPLING]
    pictures = []
    for groups in ("4", "32"):
        folder = tmp_path / groups
        flags = [*common, f"--norm_groups={groups}", f"--images_dir={folder}", "--num_images=1"]
        check(script("evaluate.py", "--sample_only", *flags))
        pictures.append((folder / "000000.png").read_bytes())
    assert pictures[0] != pictures[1]
    done = script("evaluate.py", "--sample_only", *common, "--norm_groups=5", "--num_images=1")
    refused(done, "--norm_groups=5", "--ch=32")
