"""Networks in an autoencoder's latent space through the scripts; and what is refused there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.commands import autoencoder as command
from ann2snn.data import load_dataset
from ann2snn.latent import AutoencoderConfig, ConvAutoencoder, load_autoencoder, save_autoencoder
from tests.helpers import assert_equal
from tests.scripts import NETWORK, SAMPLING, check, script, train_flags


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two autoencoders, and a run of two steps in the latents of the first."""
    folder = tmp_path_factory.mktemp("latent")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_autoencoder(folder / f"{name}.pt", ConvAutoencoder(AutoencoderConfig(1, 8, 2, 8, 1)))
    flags = train_flags(folder / "run", 2, *SAMPLING, "--sample_step=2", "--sample_size=4")
    out = check(script("ANN_train.py", *flags, f"--autoencoder={folder / 'a.pt'}"))
    return folder, out


def refused(name: str, *flags: str) -> str:
    done = script(name, *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_training_diffuses_latents_and_shows_images(trained):
    folder, out = trained
    autoencoder = load_autoencoder(folder / "a.pt")
    assert f"latents: 2x4x4 an image, of the autoencoder {autoencoder.identity}" in out
    net = checkpoint.load(folder / "run/ckpt.pt").net
    assert (net.in_channels, net.image_size, net.diffusion.autoencoder) == (2, (4, 4), autoencoder.identity)
    assert "--img_size=8\n" in (folder / "run/flagfile.txt").read_text()
    images = load_dataset("fashion_mnist_10k", "", 8).images[:4]
    shown = np.array(Image.open(folder / "run/real.png").convert("L"))[2:10, 2:10]  # the first, in its frame
    decoded = (autoencoder.decode(autoencoder.encode(images))[0, 0] + 1) * 127.5
    assert np.abs(shown - decoded.clamp(0, 255).numpy()).max() <= 0.51


def test_a_network_of_latents_goes_through_all_stages(trained, tmp_path):
    folder, _ = trained
    logdir, model = tmp_path / "run", f"--eval_model_path={folder / 'run/ckpt.pt'}"
    flags = [f"--logdir={logdir}", *NETWORK, *SAMPLING, model, f"--autoencoder={folder / 'a.pt'}"]
    out = check(script("SNN_conversion.py", "--eval", *flags, "--gap_images=1", "--gen_images=2"))
    assert "layer_sync equals its quantized ANN exactly" in out
    assert "plus, once per image, the decoder: an fp32 ANN of" in out
    pictures = [(logdir / f"images/{name}.png").read_bytes() for name in ("ANN", "SNN_T3")]
    assert pictures[0] == pictures[1]
    with np.load(logdir / "trajectory.npz") as path:
        assert all(array.shape[-3:] == (1, 8, 8) for array in path.values() if array.dtype == np.uint8)
    cost = json.loads((logdir / "cost.json").read_text())
    assert cost["decoder"]["totals"]["dense"] == 2 * 10**2 * 16 + 16 * 10**2 * 16 + (16 * 8 + 8 * 8 + 8) * 22**2
    tuning = ["--fine_tune", "--ft_steps=0", "--ft_network_steps=1", "--ft_batch_size=2", "--gap_images=0"]
    check(script("SNN_ft.py", *flags, *tuning, "--sample_size=2"))
    assert list((logdir / "SNN_2bit_ft/ft_blocks_samples").glob("*.png"))
    converted = [flag for flag in flags if flag != model]
    check(script("evaluate.py", *converted, "--sample_only", "--num_images=2", "--carry"))
    [npz] = (logdir / "generated").glob("*_2.npz")
    assert np.load(npz)["arr_0"].shape == (2, 8, 8, 1)
    [settings] = (logdir / "generated").glob("*/settings.json")
    kept = json.loads(settings.read_text())
    assert kept["autoencoder"] == load_autoencoder(folder / "a.pt").identity and kept["clip_x0"] is False


def test_given_images_are_drawn_as_they_go_through_latents_and_back(trained, tmp_path):
    folder, _ = trained
    autoencoder, net = load_autoencoder(folder / "a.pt"), ann2snn.load(folder / "run/ckpt.pt")
    images = load_dataset("fashion_mnist_10k", "", 8).images[:2]
    flags = [f"--logdir={tmp_path}", f"--eval_model_path={folder / 'run/ckpt.pt'}", f"--autoencoder={folder / 'a.pt'}"]
    flags += ["--drawn_images=2", "--sampler_steps=3", "--num_threads=1"]
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3:] = True
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(tmp_path / "mask.png")
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "0.png")
    how = {"steps": 3, "autoencoder": autoencoder}
    trip, first = ann2snn.round_trip(net, images, **how), images[:1].repeat(2, 1, 1, 1)
    rows = {
        "--invert": [images, trip.latent.decoded, trip.images],
        f"--start={tmp_path}/0.png": [first, ann2snn.edit(net, first, 0.5, **how)],
        f"--inpaint={tmp_path}/mask.png": [
            images,
            images.where(~mask, torch.tensor(128, dtype=torch.uint8)),
            ann2snn.inpaint(net, images, mask, resamples=10, **how),
        ],
    }
    for flag, expected in rows.items():
        out = check(script("evaluate.py", *flags, flag))
        [name] = [line.split(".png: ")[0] for line in out.splitlines() if ".png: " in line]
        picture = torch.from_numpy(np.array(Image.open(f"{name}.png").convert("L")))
        for i, row in enumerate(expected):
            for j, image in enumerate(row):
                assert_equal(picture[2 + 10 * i :, 2 + 10 * j :][:8, :8], image[0])
        assert ("autoencoder alone: RMSE" in out) == ("diffusion alone: RMSE" in out) == (flag == "--invert")


@pytest.mark.slow
def test_the_best_width_of_an_average_is_searched_on_latents(trained, tmp_path):
    folder, _ = trained
    flags = ["--power_ema=0.05,0.1", "--power_ema_step=2", f"--autoencoder={folder / 'a.pt'}"]
    check(script("ANN_train.py", *train_flags(tmp_path, 8, *flags)))
    search = ["--search_sigma_rel=loss", "--num_images=8", "--num_threads=1", f"--logdir={tmp_path}", flags[-1]]
    check(script("evaluate.py", *search))
    line = json.loads((tmp_path / "power_ema.jsonl").read_text())
    net = ann2snn.load(tmp_path / "ckpt.pt", sigma_rel=line["best"])
    images = load_dataset("fashion_mnist_10k", "", 8, train=False).images[:8]
    loss = ann2snn.denoising_loss(net, images, autoencoder=load_autoencoder(folder / "a.pt"))
    assert dict(line["found"])[line["best"]] == pytest.approx(loss, rel=1e-5)


def test_another_autoencoder_or_none_is_refused_by_every_stage(trained, tmp_path):
    folder, _ = trained
    run, logdir = folder / "run", f"--logdir={tmp_path}"
    a, b = (load_autoencoder(folder / f"{name}.pt").identity for name in "ab")
    other, model = f"--autoencoder={folder / 'b.pt'}", f"--eval_model_path={run / 'ckpt.pt'}"
    said = refused("ANN_train.py", *train_flags(run, 4), other)
    assert f"autoencoder={a}, now autoencoder={b}" in said
    assert f"was trained on latents of {a}" in refused("SNN_conversion.py", "--eval", logdir, model, other)
    for name, action in (("evaluate.py", "--sample_only"), ("SNN_ft.py", "--fine_tune")):
        assert f"makes latents of the autoencoder {a}: give it" in refused(name, action, logdir, model)
    shipped = "--eval_model_path=fashion-mnist-32-4bit"
    assert "was trained on images" in refused("evaluate.py", "--sample_only", logdir, shipped, other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("ANN_train.py", ["--train", "--flip"], "--flip"),
        ("ANN_train.py", ["--train", "--loss_type=kl"], "--loss_type=kl"),
        ("ANN_train.py", ["--train", "--clip_x0"], "--clip_x0: latents"),
        ("ANN_train.py", ["--train", "--process=blur"], "--autoencoder: needs --process=vp, not blur"),
        ("ANN_train.py", ["--train", "--img_size=10"], "the latents of --img_size=10 are 5"),
        ("ANN_train.py", ["--train", "--dataset_type=folder"], "takes images of 1 channels, folder has 3"),
        ("SNN_train.py", ["--train", "--arch=sddpm", "--bit=32"], "SNN_train.py trains on images"),
        ("evaluate.py", ["--make_stats"], "drop it or --make_stats"),
        ("evaluate.py", ["--score=x", "--against=y"], "drop it or --score"),
        ("evaluate.py", ["MODEL", "--start=IMAGE/0.png", "--strength=0"], "--strength=0.0: use a value above 0"),
        ("evaluate.py", ["MODEL", "--start=IMAGE/4x4.png"], "4x4.png is 4x4 pixels, the network's images 8x8"),
        ("evaluate.py", ["MODEL", "--inpaint=IMAGE/4x4.png"], "4x4.png is 4x4 pixels, the network's images 8x8"),
        ("evaluate.py", ["MODEL", "--inpaint=IMAGE/grid.png"], "--inpaint: the mask leaves no latent known"),
        ("evaluate.py", ["MODEL", "--sample_only", "--clip_x0"], "--clip_x0: latents"),
    ],
)
def test_what_latents_cannot_do_is_refused_by_name(trained, tmp_path, name, flags, words):
    folder, _ = trained
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "0.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "4x4.png")  # of a latent's size
    grid = np.zeros((8, 8), dtype=np.uint8)
    grid[::2] = 255  # a pixel of every latent
    Image.fromarray(grid).save(tmp_path / "grid.png")
    (tmp_path / "0.png").write_bytes((data / "0.png").read_bytes())
    model = f"--eval_model_path={folder / 'run/ckpt.pt'}"
    given = [model if flag == "MODEL" else flag.replace("IMAGE", str(tmp_path)) for flag in flags]
    common = [f"--logdir={tmp_path / 'run'}", f"--data_dir={data}", *NETWORK, f"--autoencoder={folder / 'a.pt'}"]
    assert words in refused(name, *common, *given)
    assert not (tmp_path / "run/ckpt.pt").exists()


def test_one_command_trains_an_autoencoder_and_refuses_what_it_cannot(tmp_path, capsys):
    shape = ["--img_size", "8", "--halvings", "1", "--latent_channels", "2", "--width", "8", "--num_threads", "1"]
    out = tmp_path / "new/ae.pt"
    assert command.main(["--out", str(out), "--steps", "2", "--batch_size", "4", *shape]) == 0
    assert "latents 2x4x4 of images 8x8, mean" in capsys.readouterr().out
    assert Image.open(out.with_suffix(".png")).size[0] == 16 * 10 + 2
    wide = tmp_path / "wide.pt"
    assert command.main(["--out", str(wide), "--steps", "1", "--batch_size", "4", *shape, "--img_size", "8,12"]) == 0
    assert "latents 2x4x6 of images 8x12, mean" in capsys.readouterr().out
    latents = load_autoencoder(wide).encode(torch.zeros(1, 1, 8, 12, dtype=torch.uint8))
    assert latents.shape == (1, 2, 4, 6)
    assert checkpoint.read(wide)["config"]["autoencoder"]["image_size"] == [8, 12]
    assert checkpoint.read(out)["config"]["autoencoder"]["image_size"] == 8  # as ever, and so is its identity
    for flags, words in (
        (["--out", str(out)], "exists"),
        (["--out", "x.pt", "--img_size", "8,9"], "--img_size=8,9: must be a multiple of 2"),
        (["--out", "x.pt", "--img_size", "8,8,8"], "argument --img_size: '8,8,8': use one whole number, or two"),
        (["--out", "x.pt", "--img_size", "0,8"], "--img_size=0,8: use 1 to"),
        (["--out", "x.pth"], "must end in .pt"),
        (["--out", "x.pt", "--img_size", "9"], "--img_size=9: must be a multiple of 2"),
        (["--out", "x.pt", "--width", "9"], "--width=9"),
        (["--out", "x.pt", "--lr", "nan"], "--lr=nan"),
        (["--out", "x.pt", "--kl_weight", "-1"], "--kl_weight=-1.0"),
    ):
        assert command.main([*shape, *flags]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
