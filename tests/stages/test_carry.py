"""--carry through the scripts: the same images, counted spikes, and a fine-tuning that is judged on carried calls."""

import json
import os
import shutil
import signal

import pytest

from ann2snn.errors import UserError
from ann2snn.generate import spikes
from ann2snn.generate.spikes import kept_spikes
from ann2snn.run.folder import SPIKES_FILE
from ann2snn.stages.evaluate import carried_counts
from tests.disks import fill, small_disk
from tests.scripts import check, four_blocks, processes, script
from tests.stages.test_bad_input import refused

CALLS = 4
DDIM = ["--sampler=ddim", f"--sampler_steps={CALLS}", "--eta=0"]


@pytest.fixture(scope="module")
def converted(finished_run, tmp_path_factory):
    """(logdir, output of the conversion) of a network converted with --carry."""
    logdir = tmp_path_factory.mktemp("carry")
    shutil.copy(finished_run[0] / "ckpt.pt", logdir)
    flags = ["--eval", f"--logdir={logdir}", *DDIM, "--carry"]
    return logdir, check(script("SNN_conversion.py", *flags, "--gen_images=4", "--gap_images=1"))


def evaluation(converted, folder, *extra: str) -> list[str]:
    path = f"--eval_model_path={converted[0]}/converted_snn.pt"
    flags = ["--eval", "--sample_only", f"--logdir={folder}", path, *DDIM, "--carry", "--num_images=70"]
    return [*flags, f"--images_dir={folder}/images", *extra]


@pytest.fixture(scope="module")
def whole(converted, tmp_path_factory):
    """Where an uninterrupted evaluation left its images."""
    folder = tmp_path_factory.mktemp("whole")
    check(script("evaluate.py", *evaluation(converted, folder)))
    return folder / "images"


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_the_conversion_counts_carried_calls_and_draws_the_same_pictures(converted):
    logdir, out = converted
    carried = json.loads((logdir / "carry.json").read_text())
    ann, rest, carry = carried["reports"]
    assert max(carried["errors"]) == 0 and len(carried["errors"]) == carried["calls"] == CALLS
    for report in (rest, carry):
        assert len(report["spikes_by_call"]) == CALLS
        assert sum(report["spikes_by_call"]) / CALLS == pytest.approx(report["totals"]["spikes"])
    assert rest["spikes_by_call"][0] == carry["spikes_by_call"][0]
    assert all(b < a for a, b in zip(rest["spikes_by_call"][1:], carry["spikes_by_call"][1:], strict=True))
    assert "quantized_differences" in ann["energy"] and "carry: per image and call" in out
    pictures = [(logdir / "images" / f"{name}.png").read_bytes() for name in ("ANN", "SNN_T3", "SNN_T3_carried")]
    assert pictures[0] == pictures[1] == pictures[2]


def test_processes_and_resumed_runs_count_the_same_spikes(converted, whole, tmp_path):
    """Killed after the first batch has been counted but not saved, then taken up by two processes."""

    def before():
        original = spikes.keep_spikes

        def counted_then_killed(*args):
            original(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        from ann2snn.stages import evaluate

        evaluate.keep_spikes = counted_then_killed

    assert script("evaluate.py", *evaluation(converted, tmp_path), before=before).returncode == -signal.SIGKILL
    for done in processes(2, "evaluate.py", *evaluation(converted, tmp_path)):
        check(done)
    assert content(tmp_path / "images") == content(whole)
    counted = kept_spikes(whole, 70)
    assert len(counted) == 70 and kept_spikes(tmp_path / "images", 70) == counted
    assert {image.restarts for image in counted} == {1} and {image.time_steps for image in counted} == {CALLS}


def test_a_line_cut_off_by_a_kill_is_no_count(whole, tmp_path):
    text = (whole / SPIKES_FILE).read_text()
    (tmp_path / SPIKES_FILE).write_text(text[: text.index("\n", 200) + 20] + '\n{"image": 1}\n[]\n{"image": -1}\n')
    known = kept_spikes(tmp_path, 70)
    assert 0 < len(known) < 70 and set(known) <= set(kept_spikes(whole, 70))
    assert kept_spikes(tmp_path / "nowhere", 3) == []


def test_a_mean_of_a_part_of_the_images_says_so(whole, tmp_path, capsys):
    shutil.copy(whole / SPIKES_FILE, tmp_path)
    full = carried_counts(tmp_path, 70, CALLS, False)
    assert capsys.readouterr().out == ""
    lines = (tmp_path / SPIKES_FILE).read_text().splitlines()
    (tmp_path / SPIKES_FILE).write_text("\n".join(lines[:20]))
    assert carried_counts(tmp_path, 70, CALLS, False).keys() == full.keys()
    assert "has the spikes of 20 images of 70" in capsys.readouterr().out


def test_spikes_that_a_disk_refuses_are_named_with_the_cure(tmp_path):
    with small_disk("64k") as disk:
        fill(disk)
        with pytest.raises(UserError, match=rf"cannot write {disk}/{SPIKES_FILE}: No space left on device; free some"):
            spikes.keep_spikes(disk, [spikes.ImageSpikes(0, 1, 1, 1)])


def test_scores_stand_beside_the_spikes_that_they_took(converted, finished_run, whole):
    lite = ["--extractor=lite0", "--lite0_size=32", f"--fid_cache={finished_run[0]}/stats.npz"]
    flags = [flag for flag in evaluation(converted, whole.parent, *lite) if flag != "--sample_only"]
    out = check(script("evaluate.py", *flags))
    line = json.loads((whole.parent / "snn_eval.txt").read_text())
    mean = sum(image.spikes for image in kept_spikes(whole, 70)) / 70 / CALLS
    assert line["spikes_per_call"] == pytest.approx(mean) and line["restarts_per_image"] == 1
    assert f" spikes per image and network call; 1 of {CALLS} calls per image began from rest" in out
    # A pass of layer_sync takes depth × T time steps, carried or not: there is no other number of them.
    assert "time_steps_per_call" not in line
    assert f"latency: {line['time_steps']} time steps per network call, {CALLS}" in out


def test_fine_tuning_is_judged_on_carried_calls(finished_run, tmp_path):
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    flags = ["--fine_tune", f"--logdir={tmp_path}", "--ft_steps=1"]
    flags += ["--ft_batch_size=4", "--sample_step=0", "--gap_images=1", *DDIM, "--carry", "--carry_steps=2"]
    out = check(script("SNN_ft.py", *flags, before=four_blocks))
    assert "prediction gap of carried calls" in out
    folder = tmp_path / "SNN_2bit_ft"
    gaps = json.loads((folder / "finetune.json").read_text())["prediction_gap"]
    errors = json.loads((folder / "carry.json").read_text())["errors"]
    assert len(errors) == CALLS and max(errors) > 0 and gaps[0] > 0
    done = script("SNN_ft.py", *flags[:-1], "--carry_steps=3")
    refused(done, "carry_steps=2", "carry_steps=3")


def test_samplers_with_too_many_calls_are_no_judges(finished_run, tmp_path):
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    flags = ["--fine_tune", f"--logdir={tmp_path}", "--carry"]
    refused(script("SNN_ft.py", *flags, "--sampler=dpmpp", "--sampler_steps=400"), "400 an image", "--sampler_steps")
