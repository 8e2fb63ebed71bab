"""--var_type=learned_range through the scripts: trained on, resumed, converted, sampled carried; what is refused."""

import pytest

import ann2snn
from tests.scripts import check, script, train_flags
from tests.stages.test_bad_input import refused

LEARNED = "--var_type=learned_range"
STRIDED = ["--sampler=ddpm_strided", "--sampler_steps=4", "--num_threads=1", "--device=cpu"]


def images(folder, path, *extra: str) -> list[bytes]:
    where = [f"--eval_model_path={path}", f"--logdir={folder}", f"--images_dir={folder}/images"]
    check(script("evaluate.py", "--eval", "--sample_only", "--num_images=4", *where, *STRIDED, *extra))
    return [picture.read_bytes() for picture in sorted((folder / "images").glob("*.png"))]


@pytest.mark.slow
def test_from_training_to_carried_images(tmp_path, finished_run):
    run, fixed = tmp_path / "run", finished_run[0] / "ckpt.pt"
    flags = train_flags(run, 2, LEARNED, f"--init_from={fixed}")
    flags = [flag for flag in flags if "bit" not in flag]
    check(script("ANN_train.py", *flags))
    net = ann2snn.load(run / "ckpt.pt")
    assert net.diffusion.var_type == "learned_range" and net.out_channels == 2 * net.in_channels
    assert net.tail[-1].weight[net.in_channels :].any()
    refused(script("ANN_train.py", *train_flags(run, 3)), "out_channels=2, now out_channels=None (--var_type)")
    check(script("SNN_conversion.py", "--eval", f"--logdir={run}", "--gap_images=1", "--gen_images=0", *STRIDED))
    ann = images(tmp_path / "ann", run / "ckpt.pt")
    assert len(ann) == 4 and images(tmp_path / "snn", run / "converted_snn.pt", "--carry") == ann
    assert images(tmp_path / "fixed", run / "ckpt.pt", "--var_type=fixedlarge") != ann
    none = ["evaluate.py", "--eval", "--sample_only", f"--eval_model_path={fixed}", f"--logdir={tmp_path}/none"]
    refused(script(*none, LEARNED), "not trained to tell its variance")
    refused(
        script("ANN_train.py", *train_flags(tmp_path / "cld", 2, LEARNED, "--process=cld")), "only for --process=vp"
    )
    spiking = [flag for flag in train_flags(tmp_path / "sddpm", 2, LEARNED, "--arch=sddpm") if "bit" not in flag]
    refused(script("SNN_train.py", *spiking), "not with --arch=sddpm")
