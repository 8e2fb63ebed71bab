"""Image i of seed s is the same bytes for every batch size, thread count, number of processes and resume point."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from ann2snn.config import DiffusionConfig, ImageSize, SampleConfig
from ann2snn.convert import convert
from ann2snn.distributed.runtime import evaluating, steady_convolutions
from ann2snn.generate.sampling import generate, generate_all, generate_batches, group_size, image_groups
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from ann2snn.nets.sddpm import SDDPM, SDDPMConfig
from tests.helpers import assert_equal, random_ann
from tests.scripts import ROOT

#: Enough to fill a group of 8-pixel images and begin another, and more than a batch that torch treats as a small one.
COUNT = 34


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def attention_unet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (1,), "norm_groups": 8, "image_size": 8}
    net = AttentionUNet(AttentionUNetConfig(**shape), DiffusionConfig(diffusion_steps=20)).eval()
    for parameter in net.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def sddpm(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {"ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "image_size": 8, "diffusion_steps": 20, "spike_steps": 2}
    return SDDPM(SDDPMConfig(**shape)).eval()


def unet(seed: int, **options: object) -> torch.nn.Module:
    """Wide enough, and its time path too, for routines whose rounding depends on the batch."""
    shape = {"ch": (24, 40, 64)[seed % 3], "norm_groups": 8, "image_size": 8, "bits": 2 + seed % 3}
    return random_ann(seed, **shape | options).float()


NETWORKS = {
    "2 bits": lambda: unet(0),
    "3 bits, 7 pixels": lambda: unet(1, ch_mult=(1,), image_size=7),
    "4 bits": lambda: unet(2, ch_mult=(1, 2, 2)),
    "byte weights": lambda: unet(3, weight_bits=4),
    "spike-driven stream": lambda: convert(unet(4, ch=16, spike_driven=True), schedule="stream"),
    "settled stream": lambda: convert(unet(6, ch=16), schedule="stream", settle_steps="auto"),
    "attention": lambda: attention_unet(5),
    "directly trained": lambda: sddpm(6),
}
BFLOAT16 = ("2 bits", "byte weights", "attention")  # with autocast, too
CASES = [*NETWORKS, *(f"{name}, bfloat16" for name in BFLOAT16)]
#: One of each kind of network and process.
QUICK = ("2 bits", "spike-driven stream", "attention", "directly trained", "2 bits, bfloat16", "ddpm", "gddim of cld")
SAMPLERS = {
    "ddpm": ("vp", {}),
    "dpmpp_sde": ("vp", {"skip": "logsnr"}),
    "gddim of cld": ("cld", {"order": 0}),
    "gddim of blur": ("blur", {"order": 0}),
    "euler of blur": ("blur", {}),
}
LEFT = [33, 5]  # what a stopped run had left: of two groups


def case(name: str) -> tuple[torch.nn.Module, SampleConfig]:
    """A network, and how it is sampled."""
    if name in SAMPLERS:
        process, options = SAMPLERS[name]
        net = unet(0, in_channels=2, ch_mult=(1,))
        net.diffusion = DiffusionConfig(diffusion_steps=5, process=process)
        return net, SampleConfig(name.split()[0], steps=3, eta=1.0, seed=3, **options)
    amp = name.endswith("bfloat16")
    net = NETWORKS[name.removesuffix(", bfloat16")]()
    return net, SampleConfig("ddim", steps=2, eta=1.0, seed=11, amp=amp)


@pytest.fixture(scope="module")
def by_two_threads(tmp_path_factory, request) -> dict[str, torch.Tensor]:
    """Images `LEFT` of every case that is asked for.

    By a process of its own: threads that wait for each other must not do so spinning, which takes for ever on a
    machine that has other things to do, and a process has to know that when it begins.
    """
    path = tmp_path_factory.mktemp("two") / "images.pt"
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    calls = (getattr(item, "callspec", None) for item in request.session.items if item.parent is request.node)
    names = [call.params["name"] for call in calls if call is not None and "name" in call.params]
    subprocess.run(
        [sys.executable, "-m", "tests.test_same_images", path, *names], cwd=ROOT, env=environment, check=True
    )
    return torch.load(path, weights_only=True)


def by_two(path: str, *names: str) -> None:
    torch.set_num_threads(2)
    torch.save({name: generate(*case(name), LEFT) for name in names}, path)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*CASES, *SAMPLERS)]
)
def test_images_depend_on_neither_batch_nor_threads_nor_resume_point(name, by_two_threads):
    net, config = case(name)
    with threads(1):
        whole = generate_all(net, config, COUNT, batch_size=128)
    assert len(whole.unique()) > 1
    assert_equal(whole[LEFT], by_two_threads[name])


def test_on_a_cpu_every_call_has_the_same_shape():
    """By construction: whatever is asked for, the network only ever sees whole groups."""
    net, shapes = unet(0), []
    net.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    for batch_size in (1, 2, 7, 128):
        for _ in generate_batches(net, SampleConfig("ddim", steps=2), [3, 4, 40], batch_size, label=None):
            pass
    generate(net, SampleConfig("ddim", steps=2), [9])
    assert set(shapes) == {(group_size(ImageSize(8, 8)), 3, 8, 8)}


def test_groups_do_not_depend_on_what_is_asked_for():
    net = unet(0)
    sizes = {side: group_size(ImageSize(side, side)) for side in (8, 16, 28, 4096)}
    assert sizes == {8: 32, 16: 32, 28: 16, 4096: 2} and group_size(ImageSize(7, 112)) == 16
    assert image_groups(net, [70, 3, 31, 32]) == [[3, 31], [32], [70]]
    assert_equal(
        generate(net, SampleConfig("ddim", steps=2), [1, 0, 1])[:2],
        generate_all(net, SampleConfig("ddim", steps=2), 2, 1)[[1, 0]],
    )


@pytest.mark.parametrize("size", [2, 4, 16])
def test_one_pixel_convolutions_round_alike_on_one_thread_and_two(size):
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(64, 96, 1), torch.randn(size, 64, 8, 8)
    plain = conv(x)
    with torch.no_grad(), steady_convolutions(conv):
        with threads(1):
            one = conv(x)
        with threads(2):
            assert_equal(conv(x), one)
    assert conv.dilation == (1, 1)
    torch.testing.assert_close(one, plain)


def test_sampling_runs_in_eval_mode_and_leaves_each_module_in_its_own():
    net = unet(0, dropout=0.5)
    expected = generate(net, SampleConfig("ddim", steps=2), range(2))
    net.train()
    net.tail.eval()
    modes = [module.training for module in net.modules()]
    assert_equal(generate(net, SampleConfig("ddim", steps=2), range(2)), expected)
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(RuntimeError), evaluating(net):
        raise RuntimeError
    assert [module.training for module in net.modules()] == modes


if __name__ == "__main__":
    by_two(*sys.argv[1:])
