"""Fine-tuning is judged on images it has never been tuned on."""

import os
import signal

import pytest
import torch

from ann2snn import UserError
from ann2snn.data import load_dataset
from ann2snn.finetune.inputs import HELD_BACK, hold_back
from ann2snn.stages import finetune
from tests.scripts import check, script, train_flags


def test_held_back_images_are_the_last_and_not_among_the_others():
    dataset = load_dataset("fashion_mnist_10k", "", 8)
    tuned_on, judged_on = hold_back(dataset)
    assert len(tuned_on) + len(judged_on) == len(dataset) and len(judged_on) == HELD_BACK
    assert torch.equal(tuned_on[0], dataset[0]) and torch.equal(judged_on[0], dataset[len(tuned_on)])
    assert torch.equal(torch.cat([tuned_on.images, judged_on.images]), dataset.images)
    with pytest.raises(IndexError):
        tuned_on[len(tuned_on)]


def test_a_set_too_small_to_split_is_refused():
    with pytest.raises(UserError, match="holds 32 back"):
        hold_back(load_dataset("fashion_mnist_10k", "", 8).part(0, 32))


def test_lazily_read_images_are_split_alike():
    dataset = load_dataset("fashion_mnist_10k", "", 8)
    part = dataset.part(5, 9)
    part.images = None
    assert torch.equal(part[1], dataset[6])


def test_sigterm_inside_a_block_ends_at_once_and_resumes(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    flags = ["--fine_tune", f"--logdir={tmp_path}", "--ft_steps=2", "--ft_batch_size=4", "--sample_step=0"]
    flags += ["--gap_images=0", "--num_threads=1"]

    def before():
        original = finetune.tune_block

        def tune_block(name, *args):
            if name == "middleblocks.0":
                os.kill(os.getpid(), signal.SIGTERM)
            return original(name, *args)

        finetune.tune_block = tune_block

    stopped = script("SNN_ft.py", *flags, before=before)
    assert stopped.returncode == 143 and "run the same command to continue" in stopped.stdout
    assert "3 blocks done" in check(script("SNN_ft.py", *flags))
