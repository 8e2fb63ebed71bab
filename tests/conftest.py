"""Set-up of the whole suite, and one tiny run through all stages for the tests that read its files."""

import signal

import pytest
import torch
import torch.utils.tensorboard  # slow to import: done once here, for all processes that tests fork

from tests.scripts import SAMPLING, check, four_blocks, script, train_flags

# In a background or under nohup these are ignored, and so by all that tests start; here they are what tests send.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for _number, _usual in _USUAL.items():
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)

# Autograd looks for devices once, at its first backward pass. Some tests import what passes for one, and a first pass
# after those would start threads for it, with which no process could be forked any more.
torch.ones(1, requires_grad=True).sum().backward()
torch.set_num_threads(1)  # the networks are tiny, and a sum's order must not depend on the machine's cores


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """(logdir, {stage: standard output}) after training, conversion, fine-tuning, statistics and evaluation."""
    logdir = tmp_path_factory.mktemp("run") / "logs"
    stats = f"--fid_cache={logdir}/stats.npz"
    lite = ["--extractor=lite0", "--lite0_size=32", stats]
    out = {
        "train": check(script("ANN_train.py", *train_flags(logdir, 6, "--sample_step=6", "--sample_size=4", *SAMPLING)))
    }
    out["convert"] = check(
        script("SNN_conversion.py", "--eval", f"--logdir={logdir}", *SAMPLING, "--gen_images=4", "--gap_images=2")
    )
    out["finetune"] = check(
        script(
            "SNN_ft.py",
            "--fine_tune",
            f"--logdir={logdir}",
            "--ft_steps=2",
            "--ft_batch_size=4",
            "--lr=1e-3",
            "--sample_size=2",
            "--gap_images=2",
            *SAMPLING,
            before=four_blocks,
        )
    )
    images = ["--dataset_type=fashion_mnist_10k", "--img_size=8", "--num_images=12"]
    out["stats"] = check(script("evaluate.py", "--make_stats", *images, *lite))
    evaluation = ["--eval", f"--logdir={logdir}", "--num_images=12", "--batch_size=5", *SAMPLING, *lite]
    out["evaluate"] = check(script("evaluate.py", *evaluation, "--pic_or_not", "--gen_images=4"))
    return logdir, out
