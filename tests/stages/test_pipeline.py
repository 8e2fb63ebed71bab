"""The four scripts, run one after the other on one logdir, leave what the documentation promises."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ann2snn
from ann2snn import UserError
from ann2snn.config import SpikingConfig
from ann2snn.stages.evaluate import claim_folder
from tests.scripts import SAMPLING, check, script, train_flags


def test_every_stage_leaves_its_files(finished_run):
    logdir, _ = finished_run
    for name in ("ckpt.pt", "flagfile.txt", "log.jsonl", "real.png", "sample/6.png"):
        assert (logdir / name).is_file(), name
    for name in (
        "converted_snn.pt",
        "gap.json",
        "cost.json",
        "raster.npz",
        "images/SNN_T3.png",
        "images/ANN.png",
        "trajectory.npz",
    ):
        assert (logdir / name).is_file(), name
    folder = logdir / "SNN_2bit_ft"
    assert (folder / "model_best.pt").is_file() and (folder / "finetune.json").is_file()
    assert (folder / "gap.json").is_file() and (folder / "cost.json").is_file()
    assert list((folder / "model_backpacks").glob("tail_*_model.pt"))
    assert list((folder / "ft_blocks_samples").glob("tail_*_result.png"))
    assert list(logdir.glob("events.out.tfevents*"))


def test_log_has_one_line_per_logged_step(finished_run):
    logdir, _ = finished_run
    lines = [json.loads(line) for line in (logdir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "train"] == list(range(6))
    lines = [json.loads(line) for line in (logdir / "SNN_2bit_ft" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"finetune"}


def test_gap_file_says_layer_sync_and_settled_stream_equal_the_ann(finished_run):
    logdir, out = finished_run
    reports = {r["label"]: r for r in json.loads((logdir / "gap.json").read_text())["reports"]}
    assert reports["layer_sync"]["blocks"][-1]["error"] < 1e-12
    assert reports["stream +auto"]["blocks"][-1]["error"] < 1e-12
    assert reports["stream"]["blocks"][-1]["block"] == "prediction"
    assert "prediction" in out["convert"] and "downblocks.0" in out["convert"]


def test_training_says_what_it_trains_and_conversion_what_came_of_it(finished_run):
    logdir, out = finished_run
    verdict = next(line for line in out["convert"].splitlines() if line.startswith("The spiking network's prediction"))
    assert "layer_sync equals its quantized ANN exactly; stream is " in verdict
    assert "; stream +auto equals " in verdict
    begun = next(line for line in out["train"].splitlines() if line.startswith(f"{logdir}: "))
    parameters = sum(p.numel() for p in ann2snn.load(logdir / "ckpt.pt").parameters())
    assert f"{parameters:,} parameters, 8,000 images of fashion_mnist_10k (train), steps 1 to 6 on cpu" in begun


def test_converted_file_holds_the_averaged_weights(finished_run):
    logdir, _ = finished_run
    ann, snn = ann2snn.load(logdir / "ckpt.pt"), ann2snn.load(logdir / "converted_snn.pt")
    assert snn.spiking.schedule == "layer_sync"
    for name, value in ann.state_dict().items():
        torch.testing.assert_close(snn.net.state_dict()[name], value, rtol=0, atol=0)


def test_fine_tuning_never_ends_worse_than_it_began(finished_run):
    logdir, _ = finished_run
    summary = json.loads((logdir / "SNN_2bit_ft" / "finetune.json").read_text())
    assert all(block["gap_after"] <= block["gap_before"] for block in summary["blocks"])
    assert {"head", "time_embedding"}.isdisjoint(block["block"] for block in summary["blocks"])
    stored = torch.load(logdir / "SNN_2bit_ft" / "model_best.pt", weights_only=True)
    assert stored["prediction_gap"] == pytest.approx(min(summary["prediction_gap"]))


def test_images_are_saved_named_by_index_and_scored_from_the_files(finished_run):
    logdir, _ = finished_run
    [line] = [json.loads(text) for text in (logdir / "snn_eval.txt").read_text().splitlines()]
    [folder] = [p for p in (logdir / "generated").iterdir() if p.is_dir()]
    assert sorted(p.name for p in folder.glob("*.png")) == [f"{i:06d}.png" for i in range(12)]
    with np.load(folder.with_name(f"{folder.name}_12.npz")) as npz:
        assert npz["arr_0"].shape == (12, 8, 8, 1)
        assert (npz["arr_0"][3, :, :, 0] == np.asarray(Image.open(folder / "000003.png"))).all()
    assert line["count"] == 12 and line["extractor"] == "efficientnet-lite0-1280@32px"
    assert "FID" not in line and line["FD_efficientnet_lite0"] > 0
    for key in ("checkpoint", "sampler", "sampler_steps", "seed", "weights", "spiking", "reference", "date", "step"):
        assert key in line, key


def test_more_images_keep_the_ones_there_and_add_a_line(finished_run):
    logdir, _ = finished_run
    [folder] = [p for p in (logdir / "generated").iterdir() if p.is_dir()]
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    check(script("evaluate.py", "--sample_only", f"--logdir={logdir}", "--num_images=14", *SAMPLING))
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    assert len(after) == 14 and all(after[name] == stamp for name, stamp in before.items())


def test_a_folder_of_other_images_is_refused(finished_run):
    logdir, _ = finished_run
    [folder] = [p for p in (logdir / "generated").iterdir() if p.is_dir()]
    done = script("evaluate.py", "--sample_only", f"--logdir={logdir}", f"--images_dir={folder}", "--seed=9", *SAMPLING)
    assert done.returncode == 2 and "seed=0, now seed=9" in done.stderr


def test_train_eval_scores_raw_and_averaged_weights(finished_run, tmp_path):
    logdir, _ = finished_run
    flags = [f"--fid_cache={logdir}/stats.npz", "--extractor=lite0", "--lite0_size=32", "--num_images=4", *SAMPLING]
    check(script("ANN_train.py", "--eval", f"--logdir={logdir}", *flags))
    assert (logdir / "samples.png").is_file() and (logdir / "samples_ema.png").is_file()
    lines = [json.loads(text) for text in (logdir / "snn_eval.txt").read_text().splitlines()]
    assert [line["weights"] for line in lines[-2:]] == ["net", "ema"]


def test_real_test_images_can_be_scored_as_the_floor(finished_run, tmp_path):
    stats = f"--fid_cache={finished_run[0]}/stats.npz"
    flags = ["--extractor=lite0", "--lite0_size=32", "--dataset_type=fashion_mnist_10k", "--img_size=8", stats]
    check(script("evaluate.py", "--score_data", "--num_images=20", f"--logdir={tmp_path}", *flags))
    [line] = [json.loads(text) for text in (tmp_path / "snn_eval.txt").read_text().splitlines()]
    assert line["network"] == "real images (fashion_mnist_10k, test)" and line["count"] == 20


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_trains_grey_or_in_colour(tmp_path, channels):
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (10, 14, 3), dtype=np.uint8)
        (tmp_path / "images" / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"class{index % 2}" / f"{index}.png")
    folder = ["--dataset_type=folder", f"--data_dir={tmp_path}/images", f"--channels={channels}"]
    check(script("ANN_train.py", *train_flags(tmp_path / "run", 2), *folder))
    assert ann2snn.load(tmp_path / "run" / "ckpt.pt").in_channels == channels


def test_images_made_before_a_setting_existed_still_belong_to_their_folder(tmp_path):
    made_with = {"network": "converted", "spiking": SpikingConfig("stream").to_dict()}
    older = {key: value for key, value in made_with["spiking"].items() if key != "burst"}
    (tmp_path / "settings.json").write_text(json.dumps(made_with | {"spiking": older}))
    claim_folder(tmp_path, made_with)
    with pytest.raises(UserError, match="burst"):
        claim_folder(tmp_path, made_with | {"spiking": SpikingConfig("stream", burst=2).to_dict()})
