"""What a conversion keeps for the report: the way of the first images, and the gap at each time alone."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ann2snn.config import DiffusionConfig, SampleConfig, SpikingConfig
from ann2snn.convert import convert
from ann2snn.convert.gap import measure_gap
from ann2snn.data import to_uint8
from ann2snn.diffusion import ImageNoise
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.generate.probe import OwnPath, halfway_state, sampler_calls, sampler_states
from ann2snn.run.paths import load_paths, save_paths
from ann2snn.stages.convert import gap_reports, write_gap, write_grids
from ann2snn.stages.paths import FirstPath
from tests.helpers import random_ann

SAMPLE = SampleConfig("ddim", steps=5, seed=3)


@pytest.fixture(scope="module")
def ann():
    net = random_ann(in_channels=1)
    net.diffusion = DiffusionConfig(diffusion_steps=20, beta_T=0.3)
    return net


def kept(folder, ann, sample=SAMPLE, count=3, **how):
    write_grids(folder, (convert(ann, **how), ann), sample, count, 2, ALONE)
    return load_paths(folder / "trajectory.npz")


def test_the_paths_run_from_one_noise_to_the_images_of_the_grids(tmp_path, ann):
    paths = kept(tmp_path, ann, schedule="stream")
    noise = to_uint8(ImageNoise(3, range(2), (1, 4, 4), "cpu")()).numpy()
    assert paths.ann.shape == (6, 2, 1, 4, 4) and list(paths.times) == [19, 14, 10, 5, 0]
    for states, name in ((paths.ann, "ANN"), (paths.snn, "SNN_T3")):
        assert np.array_equal(states[0], noise)
        grid = pil_to_tensor(Image.open(tmp_path / "images" / f"{name}.png"))[:1]
        assert np.array_equal(states[-1, 0], grid[:, 2:6, 2:6])  # the first image of a grid with gaps of 2 pixels
    assert not np.array_equal(paths.ann, paths.snn)  # stream, unsettled, is another network
    assert paths.how["spiking"]["schedule"] == "stream" and paths.how["carry"] is False


def test_the_exact_network_takes_the_same_way_levels_carried_or_not(tmp_path, ann):
    for carry in (False, True):
        paths = kept(tmp_path, ann.double(), dataclasses.replace(SAMPLE, carry=carry), 2)
        assert np.array_equal(paths.ann, paths.snn) and paths.how["carry"] is carry


def test_one_image_is_enough_and_many_add_none(tmp_path, ann):
    assert [kept(tmp_path, ann, count=n).ann.shape[1] for n in (1, 7)] == [1, 2]


def test_a_batch_of_one_image_is_followed_alone(ann):
    path, images = FirstPath(ann), torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    path.watch(19, torch.ones(1, 1, 4, 4))
    assert path.frames(images)[:, :, 0, 0, 0].tolist() == [[255], [0]]


@pytest.mark.parametrize(
    "change",
    [
        {"ann": np.zeros((6, 2, 1, 4, 4), np.int8)},
        {"snn": np.zeros((5, 2, 1, 4, 4), np.uint8)},
        {"ann": np.zeros((6, 2, 2, 4, 4), np.uint8), "snn": np.zeros((6, 2, 2, 4, 4), np.uint8)},
        {"times": np.full(5, np.nan)},
        {"times": np.zeros(6)},
        {"how": np.array("[]")},
        {"how": np.array("[" * 9000)},
        {"how": np.array({"a": 1}, dtype=object)},
    ],
)
def test_a_malformed_file_is_refused_in_a_sentence(tmp_path, ann, change):
    paths = kept(tmp_path, ann, count=2)
    path = tmp_path / "trajectory.npz"
    save_paths(path, paths)  # as it was read
    content = {"ann": paths.ann, "snn": paths.snn, "times": paths.times, "how": np.array("{}")}
    np.savez(path, **content | change)
    with pytest.raises(UserError, match="cannot read .*trajectory.npz as sampling paths: .*"):
        load_paths(path)


def test_the_gap_at_a_time_is_the_gap_of_that_time_s_images_alone(ann):
    ann = ann.double()
    snn, how = convert(ann, schedule="stream"), SpikingConfig("stream")
    x, t = sampler_states(ann, 2, 3, seed=1)
    whole = measure_gap(ann, snn, x, t, how, batch_size=4)
    assert whole.times == tuple(dict.fromkeys(t.tolist())) and len(whole.times) == 3
    for index, time in enumerate(whole.times):
        alone = measure_gap(ann, snn, x[t == time], t[t == time], how)
        for row, other in zip(whole.rows(), alone.rows(), strict=True):
            assert row.errors_at[index] == pytest.approx(other.error, rel=1e-9, abs=1e-15)
    assert whole.prediction.error > 1e-3
    many = measure_gap(ann, snn, x[:1].expand(40, -1, -1, -1), torch.linspace(0, 19, 40).double(), how, batch_size=40)
    assert many.times == () and many.prediction.errors_at == ()


def test_the_file_of_gaps_holds_the_times_and_has_no_more_where_they_are_unknown(tmp_path, ann):
    reports = gap_reports(OwnPath(ann, 1), convert(ann), SpikingConfig())
    write_gap(tmp_path / "gap.json", reports, 1)
    written = json.loads((tmp_path / "gap.json").read_text())["reports"]
    assert all(len(r["times"]) == 4 == len(block["errors_at"]) for r in written for block in r["blocks"])
    plain = dataclasses.replace(
        reports[0], times=(), blocks=(), prediction=dataclasses.replace(reports[0].prediction, errors_at=())
    )
    assert "times" not in plain.to_dict() and "errors_at" not in plain.to_dict()["blocks"][0]


@pytest.mark.parametrize("sample", [SampleConfig("ddim", 20, seed=3), SampleConfig("ddim", 5, seed=3)])
def test_a_path_that_is_walked_once_gives_what_each_would_that_walks_it_anew(ann, sample):
    visited, double = OwnPath(ann, 3, seed=3), copy.deepcopy(ann).double()
    for found, expected in (
        (visited.states(4, 2), sampler_states(double, 2, 4, 3)),
        (visited.halfway(), halfway_state(double, 3)),
        *zip(visited.calls(sample, 2), sampler_calls(double, sample, 2), strict=True),
    ):
        assert all(map(torch.equal, found, expected))
