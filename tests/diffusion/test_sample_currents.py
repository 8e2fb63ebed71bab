"""Sampling on synaptic currents: against DDIM, an oracle, and the update written out; and who may use it."""

import math

import pytest
import torch

from ann2snn.config import DiffusionConfig, SampleConfig
from ann2snn.diffusion import VP, check
from ann2snn.diffusion.process import check_sampling, current_steps
from ann2snn.diffusion.samplers import sample_currents, sample_ddim
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.generate.sampling import Hooks, generate, generate_all, generate_batches
from ann2snn.nets.fsddim import FSDDIM, FSDDIMConfig
from tests.diffusion.vp_exact import no_noise, normal, oracle
from tests.fill import deterministic_fill
from tests.helpers import assert_equal, random_ann

PUBLISHED = DiffusionConfig(mean_type="v", schedule="cosine")
mean_types = pytest.mark.parametrize("mean_type", ["v", "epsilon", "xstart", "xprev"])


def small(steps: int = 20) -> FSDDIM:
    shape = {"in_channels": 1, "image_size": 8, "ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "spike_steps": 4}
    diffusion = DiffusionConfig(diffusion_steps=steps, mean_type="v", schedule="cosine")
    net = FSDDIM(FSDDIMConfig(**shape, diffusion_steps=steps), diffusion)
    deterministic_fill(net)
    return net.double().eval()


# ---- the sampler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_an_oracle_is_followed_through_every_diffusion_step(dtype, tolerance):
    vp, image, seen = VP(PUBLISHED), normal(2, 1, 3, 3).clamp(-0.9, 0.9).to(dtype), []
    perfect = oracle(vp, torch.cat([image] * 4))

    def net(currents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert currents.shape == (8, 1, 3, 3) and t.shape == (2,) and t[0] == t[1]
        seen.append(int(t[0]))
        return perfect(currents, t.repeat(4))

    x = normal(2, 1, 3, 3, seed=1).to(dtype)
    out = sample_currents(net, vp, x, noise=no_noise, spike_steps=4)
    assert seen == list(range(999, -1, -1))
    torch.testing.assert_close((out + 1) / 2, (image + 1) / 2, rtol=0, atol=tolerance)
    assert_equal(sample_currents(net, vp, x, noise=no_noise, spike_steps=4), out)


@mean_types
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_currents_that_do_not_meet_are_sampled_as_images(mean_type, steps):
    # A network that acts on each current alone knows no time steps; images far from the final limits, and clipping off.
    vp, states = VP(DiffusionConfig(diffusion_steps=20, mean_type=mean_type, schedule="cosine")), ([], [])
    x = 1e-3 * normal(2, 1, 3, 3)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) * torch.cos(t.double() / 7).repeat(len(x) // len(t)).view(-1, 1, 1, 1)

    hooks = [lambda time, x, kept=kept: kept.append((time, x)) for kept in states]
    common = {"noise": no_noise, "steps": steps, "clip": False}
    out = sample_currents(net, vp, x, spike_steps=3, on_step=hooks[0], **common)
    expected = sample_ddim(net, vp, x, on_step=hooks[1], **common)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    assert len(states[0]) == steps
    for (time, decoded), (other, image) in zip(*states, strict=True):
        assert time == other
        torch.testing.assert_close(decoded, image, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_published_update_with_time_innermost():
    net = small(1000)
    vp, currents = VP(PUBLISHED), normal(2, 1, 8, 8)[..., None].repeat(1, 1, 1, 1, 4)
    x, times = currents.mean(-1), [999, 500, 0]
    alpha = [float(a) for a in vp.alphas_bar]
    peak = 0.0
    for now, then in zip(times, [*times[1:], None], strict=True):
        before = 1.0 if then is None else alpha[then]
        v = net(currents.permute(4, 0, 1, 2, 3).flatten(0, 1), torch.full((2,), now)).view(4, 2, 1, 8, 8)
        x_0 = math.sqrt(alpha[now]) * currents - math.sqrt(1 - alpha[now]) * v.permute(1, 2, 3, 4, 0)
        peak = max(peak, float(x_0.abs().max()))
        c_2 = math.sqrt(1 - before) / math.sqrt(1 - alpha[now])
        currents = (math.sqrt(before) - math.sqrt(alpha[now]) * c_2) * x_0 + c_2 * currents
    out = sample_currents(net, vp, x, noise=no_noise, spike_steps=4, steps=3)
    torch.testing.assert_close(out, currents.mean(-1).clamp(-1, 1), rtol=0, atol=1e-9)
    assert peak > 1.2, "currents beyond the limits of images pass"
    assert float(currents.var(-1).max()) > 1e-3, "and differ from step to step"
    assert float(out.min()) >= -1 and float(out.max()) <= 1


# ---- as one of the samplers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SampleConfig("fsddim", steps=3, seed=4), SampleConfig("ddim", steps=3, seed=4)])
def test_an_image_is_the_same_in_any_batch_and_order(config):
    net = small()
    whole = generate(net, config, range(4))
    assert whole.shape == (4, 1, 8, 8) and len(whole.unique()) > 10
    assert_equal(generate(net, config, [2, 0]), whole[[2, 0]])
    assert_equal(torch.cat([generate(net, config, [i]) for i in range(4)]), whole)
    assert_equal(generate_all(net, config, 4, batch_size=3), whole)


def test_samplers_of_images_run_on_the_same_network():
    net = small()
    currents = generate(net, SampleConfig("fsddim", steps=3), range(2))
    for sampler in ("ddpm", "ddim", "dpmpp", "dpmpp_sde"):
        images = generate(net, SampleConfig(sampler, steps=3, clip=False), range(2))
        assert images.shape == currents.shape and not torch.equal(images, currents)


class Bar:
    """Stands in for the progress bar."""

    def __init__(self) -> None:
        self.done = 0

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None: ...

    def update(self, count: int) -> None:
        self.done += count


@pytest.mark.parametrize(("images", "batch_size"), [(5, 2), (1, 4)])
def test_progress_counts_images(monkeypatch, images, batch_size):
    bar, totals = Bar(), []

    def progress(total: int, *rest: object) -> Bar:
        totals.append(total)
        return bar

    monkeypatch.setattr(type(ALONE), "progress", lambda self, total, *rest: progress(total, *rest))
    list(generate_batches(small(), SampleConfig("fsddim", steps=4), range(images), batch_size))
    assert totals == [4 * images] and bar.done == 4 * images


def test_states_are_seen_as_images():
    seen = []
    generate(
        small(), SampleConfig("fsddim", steps=4), [7], hooks=Hooks(on_step=lambda time, x: seen.append((time, x.shape)))
    )
    assert seen == [(time, (1, 1, 8, 8)) for time in (19, 13, 6, 0)]


def test_the_published_run_is_all_steps_and_no_clipping():
    config = SampleConfig("fsddim", steps=1000)
    assert config.calls(PUBLISHED) == 1000 == len(check("fsddim", VP(PUBLISHED), steps=1000, spike_steps=8))
    assert config.clip is False and SampleConfig("ddim").clip is True
    assert SampleConfig("fsddim").calls(PUBLISHED) == 50


def no_net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the network was called")


def test_what_cannot_work_is_refused_before_the_first_call():
    needs = "--sampler=fsddim: needs a network on synaptic currents .--arch=fsddim."
    net = random_ann(diffusion_steps=10)
    assert current_steps(net) is None and current_steps(small()) == current_steps(small().config) == 4
    with pytest.raises(UserError, match=needs):
        generate(net, SampleConfig("fsddim", steps=4), range(2), hooks=Hooks(on_call=no_net))
    with pytest.raises(UserError, match=needs):
        check_sampling(PUBLISHED, 8, SampleConfig("fsddim"))
    check_sampling(PUBLISHED, 8, SampleConfig("fsddim"), spike_steps=8)
    with pytest.raises(UserError, match="samples --process=vp only"):
        check_sampling(DiffusionConfig(process="blur"), 8, SampleConfig("fsddim"), spike_steps=8)
    with pytest.raises(UserError, match="--sampler_steps=21"):
        check_sampling(DiffusionConfig(diffusion_steps=20), 8, SampleConfig("fsddim", steps=21), spike_steps=8)
    for options, message in (
        ({"clip": True}, "--clip_x0"),
        ({"steps": 1001}, "--sampler_steps=1001"),
        ({"skip": "logsnr"}, "--skip_type=logsnr"),
    ):
        with pytest.raises(UserError, match=message):
            sample_currents(no_net, VP(PUBLISHED), normal(1, 1, 2, 2), noise=no_noise, spike_steps=4, **options)
