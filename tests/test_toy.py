"""The toy command: runs of seconds, the same again for the same seed, and refusals of one line."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn.checkpoints import checkpoint
from ann2snn.config import IMAGE_SAMPLERS, UNetConfig
from ann2snn.data.toy import toy_points
from ann2snn.diffusion.blur import BDM, BDMConfig
from ann2snn.diffusion.cld import CLD
from ann2snn.diffusion.ddpm import DDPM
from ann2snn.diffusion.precondition import LinearFirst, noise_weights
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from ann2snn.nets.mlp import MLP
from ann2snn.toy import sets
from ann2snn.toy.__main__ import main, settings_from
from ann2snn.toy.learn import build, load, save, train
from ann2snn.toy.settings import IMAGES, NAMES, REACH, ToySettings
from tests.test_architecture import ROOT

SMALL = ["--train_steps=3", "--batch_size=8", "--width=16", "--layers=1", "--samples=6", "--num_threads=1"]


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def refusal(capsys, *arguments) -> str:
    assert main([*map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
    return shown.err


# ---- the command -----------------------------------------------------------------------------------------------------


def test_every_sampler_of_vp_runs_and_counts_its_calls(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--sampler", "all", "--steps", "4", "5", "--T", "12", *SMALL]) == 0
    head, data, *results = lines(tmp_path)
    expected = [(name, steps) for name in [*IMAGE_SAMPLERS, "gddim", "euler"] for steps in (4, 5) if name != "ddpm"]
    assert [(r["sampler"], r["nfe"]) for r in results] == [("ddpm", 12), *expected]
    assert all(math.isfinite(r["distance"]) and r["sliced_wasserstein"] > 0 for r in results)
    assert head["settings"]["seed"] == 0 and data["distance"] < 0.05
    printed = capsys.readouterr().out
    assert "gaussian8" in printed and "dpmpp_sde" in printed and str(tmp_path / "points.png") in printed
    assert Image.open(tmp_path / "points.png").width > 300
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("process", "extra"),
    [
        ("cld", ["--points=rings", "--corrector=pec"]),
        ("blur", []),
        pytest.param("blur", ["--points=fashion", "--order=0", "--lam=1"], marks=pytest.mark.slow),
    ],
)
def test_other_processes_run_with_their_samplers(tmp_path, process, extra):
    steps = ["--steps", "5", "--sampler", "gddim", "euler"]
    assert main(["--out", str(tmp_path), f"--process={process}", *steps, *SMALL, *extra]) == 0
    _, data, *results = lines(tmp_path)
    assert [(r["sampler"], r["nfe"]) for r in results] == [("gddim", 5), ("euler", 5)]
    assert (data["distance"] is None) == ("--points=fashion" in extra)


def test_the_same_seed_makes_the_same_files_and_another_seed_others(tmp_path):
    def run(name, *extra):
        assert main(["--out", str(tmp_path / name), "--steps", "5", *SMALL, *extra]) == 0
        figures = [{k: v for k, v in r.items() if k != "seconds"} for r in lines(tmp_path / name)[2:]]
        return figures, (tmp_path / name / "points.png").read_bytes()

    torch.manual_seed(3)
    first = run("a")
    torch.manual_seed(4)  # whatever else used torch's generator
    assert run("b") == first
    assert run("c", "--seed=1") != first


def test_a_kept_network_samples_as_it_did_when_it_was_trained(tmp_path):
    flags = ["--process=cld", "--steps", "5", *SMALL]
    assert main(["--out", str(tmp_path / "a"), *flags]) == 0
    assert main(["--out", str(tmp_path / "b"), *flags, "--network", str(tmp_path / "a" / "toy.pt")]) == 0
    first, second = (lines(tmp_path / name)[2]["sliced_wasserstein"] for name in "ab")
    assert first == second
    assert not (tmp_path / "b" / "toy.pt").exists()


def test_a_kept_network_that_is_not_finite_is_refused(tmp_path, capsys):
    settings, _ = settings_from(["--out=x", *SMALL])
    net = build(settings)
    torch.nn.init.constant_(net.last.weight, math.nan)
    save(tmp_path / "nan.pt", net, settings, 1.0)
    assert main(["--out", str(tmp_path / "out"), *SMALL, f"--network={tmp_path}/nan.pt"]) == 2
    assert "nan.pt: its weights hold values that are not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_with_files_of_another_run_is_left_as_it_is(tmp_path, capsys):
    def run(out, *extra):
        code = main(["--out", str(out), "--steps", "5", *SMALL, *extra])
        return code, {path.name: path.read_bytes() for path in out.iterdir()}

    _, first = run(tmp_path / "a")
    kept = {name: content for name, content in first.items() if name != "results.jsonl"}  # which says how long it took
    assert run(tmp_path / "a")[0] == 0, "the very same run makes the same files"
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert kept.items() <= before.items()
    (tmp_path / "a" / "toy.pt").rename(tmp_path / "toy.pt")
    for files in (("results.jsonl", "points.png"), ("points.png",)):
        left = {name: before[name] for name in files}
        assert run(tmp_path / "a", "--seed=1") == (2, left)
        assert "choose another --out" in capsys.readouterr().err
        (tmp_path / "a" / files[0]).unlink()
    (tmp_path / "toy.pt").rename(tmp_path / "a" / "toy.pt")
    assert run(tmp_path / "a", "--seed=1") == (2, {"toy.pt": before["toy.pt"]})
    assert run(tmp_path / "a")[0] == 0, "a run that was killed after its training"


@pytest.mark.parametrize("name", ["vp", "cld", "blur"])
def test_shipped_files_of_arguments_are_valid(name):
    settings, _ = settings_from([f"@{ROOT}/config/toy/{name}.txt", "--out=x", "--seed=7"])
    assert settings.process == name and settings.seed == 7 and settings.steps == (5, 10, 20, 50)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "points"), [("vp", "gaussian8"), ("cld", "rings"), ("blur", "squares")])
def test_training_lowers_the_loss_from_one(process, points):
    options = {"width": 32, "layers": 1, "batch_size": 256, "samples": 4, "time_power": 2.0, "steps": (5,)}
    sampler = ("ddim",) if process == "vp" else ("gddim",)
    short = ToySettings(process=process, points=points, sampler=sampler, train_steps=1, **options)
    long = ToySettings(process=process, points=points, sampler=sampler, train_steps=80, **options)
    untrained, trained = train(short)[1], train(long)[1]
    # Preconditioned, the loss of a silent network is 1 only for data of mean 0 and variance 1 in every frequency.
    assert process == "blur" or untrained == pytest.approx(1, abs=0.15)
    # Of CLD little is left to learn: 4000 steps go from 1 to about 0.93.
    assert process == "cld" or trained < 0.97 * untrained


def test_diverging_training_is_refused(monkeypatch):
    monkeypatch.setattr(DDPM, "loss", lambda process, net, *rest: net.last.weight.sum() * math.nan)
    with pytest.raises(UserError, match="smaller --lr"):
        train(ToySettings(train_steps=2, batch_size=2, width=8, layers=1, samples=1))


@pytest.mark.parametrize("shape", [(3, 2), (3, 4), (3, 1, 8, 8)])
def test_the_network_keeps_the_shape_and_starts_silent(shape):
    net = MLP(math.prod(shape[1:]), width=8, waves=2)
    x, t = torch.randn(shape), torch.tensor([0, 5, 99])
    assert torch.equal(net(x, t), torch.zeros(shape))
    torch.nn.init.ones_(net.last.weight)
    assert not torch.equal(net(x, t), net(x, t + 0.5)), "fractional times must differ"


def gaussian_inputs(process, count: int, time: float, *shape: int):
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    wide = (process.n * shape[0], *shape[1:])
    noise = torch.randn(count, *wide, generator=generator, dtype=torch.float64)
    t = torch.full((count,), time, dtype=torch.float64)
    return process.diffuse(x_0, t, noise), t, noise


@pytest.mark.parametrize(
    ("process", "shape"), [(CLD(), (2,)), (BDM(BDMConfig(image_size=4)), (1, 4, 4))], ids=["cld", "blur"]
)
@pytest.mark.parametrize("time", [0.05, 0.3, 0.9])
def test_the_linear_prediction_is_the_regression_of_the_noise(process, shape, time):
    """Against least squares on draws, and its error against the spread it promises."""
    x, t, noise = gaussian_inputs(process, 20_000, time, *shape)
    silent = LinearFirst(lambda x, t: torch.zeros_like(x), process, 1.0)
    predicted = silent(x, t)
    design, target = x.flatten(1).numpy(), noise.flatten(1).numpy()
    fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    error = float((predicted - noise).square().mean())
    assert error * float(noise_weights(process, t)[0]) == pytest.approx(1, abs=0.05)
    # 16 coefficients fitted to 20,000 draws are off by 3 % of the error at most
    assert float(np.sqrt(np.mean((predicted.flatten(1).numpy() - fitted) ** 2))) < 0.05 * math.sqrt(error)


def test_the_network_adds_its_share_of_what_is_left():
    process = CLD()
    x, t, _ = gaussian_inputs(process, 5, 0.4, 2)
    silent = LinearFirst(lambda x, t: torch.zeros_like(x), process, 1.0)
    speaking = LinearFirst(lambda x, t: torch.ones_like(x), process, 1.0)
    share = (speaking(x, t) - silent(x, t)).float()
    torch.testing.assert_close(share, noise_weights(process, t)[:, None].rsqrt().expand(5, 4), rtol=1e-5, atol=0)


# ---- sets and distances ----------------------------------------------------------------------------------------------


def test_squares_are_all_squares_of_two_sizes():
    pictures = sets._squares()
    assert len(pictures) == 36 + 25 and len(torch.unique(pictures.flatten(1), dim=0)) == 61
    assert sorted(set((pictures == 1).flatten(1).sum(dim=1).tolist())) == [9, 16]
    assert sets.distance("squares", sets.draw("squares", 50, 0)) == 0
    off = sets.draw("squares", 1, 0)
    off[0, 0, 0, 0] += 0.8
    assert sets.distance("squares", off) == pytest.approx(0.1)


def test_sliced_wasserstein_of_a_shift_and_of_an_order():
    points = toy_points("swissroll", 400)
    assert sets.sliced_wasserstein(points, points.flip(0)) == 0
    # a shift by v moves the projection on a direction by its cosine: sqrt(mean cos²) = sqrt(1/2)
    assert sets.sliced_wasserstein(points, points + torch.tensor([3.0, 4.0])) == pytest.approx(5 / 2**0.5, rel=1e-6)


def test_no_point_leaves_what_vp_samplers_can_return():
    assert (*sets.TOYS, *IMAGES) == NAMES
    for name in sets.TOYS:
        assert float((sets.draw(name, 20_000, 1) / REACH).abs().max()) < 1


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--points=moons"], "moons"),
        (["--process=blur", "--points=rings"], "square pictures"),
        (["--process=cld", "--points=squares"], "points of the plane"),
        (["--process=cld", "--sampler=ddim"], "ddim"),
        (["--sampler", "dpmpp", "--steps", "2"], "order"),
        (["--sampler", "gddim", "--steps", "5", "--corrector=pece"], "even"),
        (["--process=cld", "--lam=0.5"], "order=2"),
        (["--steps", "0"], "steps"),
        (["--steps", "x"], "x"),
        (["--steps", "101"], "--T"),
        (["--seed=-1"], "--seed"),
        (["--lr=nan"], "--lr"),
        (["--width=0"], "--width"),
        (["--beta_1=0.5"], "beta_1"),
        (["--train_steps=1e3"], "train_steps"),
        (["--frobnicate"], "frobnicate"),
        (["@/nowhere.txt"], "/nowhere.txt"),
        (["--network=/nowhere.pt"], "/nowhere.pt"),
        (["--out=/proc/toy"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_input_is_one_line_before_anything_is_computed(tmp_path, capsys, arguments, word):
    assert word in refusal(capsys, f"--out={tmp_path / 'run'}", *SMALL, *arguments)
    assert not list(tmp_path.rglob("*.p*"))


def test_files_of_arguments_that_cannot_be_meant_are_refused(tmp_path, capsys):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "binary.txt" in refusal(capsys, f"@{tmp_path}/binary.txt")
    (tmp_path / "loop.txt").write_text(f"@{tmp_path}/loop.txt\n")
    assert "itself" in refusal(capsys, f"@{tmp_path}/loop.txt")
    assert "--out" in refusal(capsys)


def test_foreign_networks_are_refused(tmp_path, capsys):
    settings = ToySettings(width=16, layers=1)
    path = tmp_path / "other.pt"
    checkpoint.save(path, {"kind": "ann", "ema_model": UNet(UNetConfig(ch=32, ch_mult=(1,))).state_dict()})
    assert "no checkpoint of a toy run" in refusal(capsys, f"--out={tmp_path}/x", f"--network={path}")
    state = build(settings).state_dict()
    content = {"kind": "toy", "ema_model": state, "config": {"toy": settings.to_dict()}}
    checkpoint.save(path, content)
    load(path, settings)
    with pytest.raises(UserError, match="--process=vp, now --process=cld"):
        load(path, ToySettings(process="cld", sampler=("gddim",), width=16, layers=1))
    checkpoint.save(path, content | {"ema_model": {**state, "last.bias": torch.zeros(3)}})
    with pytest.raises(UserError, match="do not fit"):
        load(path, settings)
