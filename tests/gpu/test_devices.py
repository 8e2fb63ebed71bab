"""Sampling, training, scores, gaps and costs run on a GPU without mixing devices, and wait for it as written, no more.

`waits.json` holds, by path and place in our code, how often one more step makes the host wait for the GPU ("waits") or
copies to it ("copies"). It may only shrink: a test fails where a count grows, and where one shrinks until the
file is updated.
"""

import copy
import dataclasses
import functools
import itertools
import json
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch

import ann2snn
from ann2snn.config import DiffusionConfig, SampleConfig, TrainConfig, UNetConfig
from ann2snn.convert import SpikingNetwork
from ann2snn.data import load_dataset
from ann2snn.data.loader import batches
from ann2snn.diffusion import VP, ImageNoise
from ann2snn.diffusion.process import network_channels
from ann2snn.diffusion.samplers import analytic_statistics
from ann2snn.diffusion.vp import gather
from ann2snn.distributed.runtime import place, sent
from ann2snn.distributed.world import World
from ann2snn.finetune import LEARNABLE, BlockTuning, Networks, expand_neurons, tied_proxy, tunable_blocks, tune_block
from ann2snn.generate.sampling import SEED_ALONE, Given, generate
from ann2snn.metrics.fad import FadExtractor
from ann2snn.metrics.fad_encoder import AutoEncoder
from ann2snn.metrics.frechet import FeatureStatistics
from ann2snn.metrics.inception_score import InceptionScore
from ann2snn.metrics.precision_recall import precision_recall
from ann2snn.nets.mlp import MLP
from ann2snn.training.trainer import Computing, Trainer
from tests.gpu.networks import CONFIGS, STEPS, small
from tests.gpu.simulated import GPU, simulated_gpu

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 crashes where a dispatch mode watches a backward pass"
)
WAITS = Path(__file__).with_name("waits.json")
TINY = UNetConfig(
    in_channels=1,
    image_size=4,
    ch=4,
    ch_mult=(1,),
    num_res_blocks=1,
    diffusion_steps=STEPS,
    norm_groups=2,
    dropout=0.1,
    bits=2,
)


def require_recorded(path: str, waits: Counter, copies: Counter) -> None:
    """Compare what one more step asked for with `waits.json`."""
    found = {kind: dict(sorted(count.items())) for kind, count in (("waits", waits), ("copies", copies)) if count}
    recorded = json.loads(WAITS.read_text())
    assert found == recorded.get(path, {}), f"{path}: now {json.dumps(found)}; where that is less, update {WAITS.name}"


def one_more(path: str, run, fewer: int = 2, more: int = 3) -> None:
    """`run(gpu, n)` does n steps; what one of them asks for must be as recorded."""
    counts = []
    for n in (fewer, more):
        with simulated_gpu() as gpu:
            run(gpu, n)
        counts.append((gpu.waits, gpu.copies))
    require_recorded(path, *(b - a for a, b in zip(*counts, strict=True)))


class Points(MLP):
    """A quick denoiser of images."""

    image_size = 4

    def __init__(self, **diffusion: object) -> None:
        self.__dict__["diffusion"] = DiffusionConfig(diffusion_steps=STEPS, **diffusion)
        self.__dict__["in_channels"] = network_channels(self.diffusion, 1)
        torch.manual_seed(0)
        super().__init__(16 * self.in_channels, width=8, layers=1)
        torch.nn.init.normal_(self.last.weight, std=0.1)


@pytest.mark.parametrize("name", [*CONFIGS, "mlp"])
def test_networks_forward_and_backward(name):
    net = small(name)
    plain, x, t = copy.deepcopy(net), torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    with simulated_gpu() as gpu:
        place(net, GPU)
        there, when = x.to(GPU), t.to(GPU)
        gpu.waits.clear()
        answer = net(there, when)
        answer.square().mean().backward()
        assert not gpu.waits
        assert all(p.grad is None or p.grad.is_cuda for p in net.parameters())
        answer = answer.detach().cpu()
    assert torch.allclose(answer, plain(x, t), atol=1e-5)


SAMPLERS = {
    **{
        name: SampleConfig(name, skip="uniform")
        for name in ("ddim", "ddpm_strided", "dpm_solver", "dpmpp", "dpmpp_sde")
    },
    "ddim eta 1": SampleConfig("ddim", eta=1.0),
    "dpm_solver logsnr": SampleConfig("dpm_solver"),
    "gddim": SampleConfig("gddim", eta=0.5, order=0, clip=False),
    "gddim pece": SampleConfig("gddim", order=1, corrector="pece", clip=False),
    "euler": SampleConfig("euler", eta=1.0, clip=False),
}
OTHERS = [("cld", "gddim"), ("cld", "euler"), ("blur", "gddim"), ("blur", "euler")]


def sampled(net: torch.nn.Module, config: SampleConfig, steps: int, given: Given = SEED_ALONE) -> None:
    made = generate(place(copy.deepcopy(net), GPU), SampleConfig(**vars(config) | {"steps": steps}), range(2), given)
    assert made.dtype == torch.uint8 and not made.is_cuda


@pytest.mark.parametrize(
    ("name", "mean_type"), [*((name, "epsilon") for name in SAMPLERS), ("ddim eta 1", "v"), ("ddim eta 1", "xstart")]
)
def test_samplers(name, mean_type):
    net = Points(mean_type=mean_type)
    one_more(f"{name}, {mean_type}", lambda gpu, n: sampled(net, SAMPLERS[name], n), 4, 6 if "pece" in name else 5)


@pytest.mark.parametrize(("process", "name"), OTHERS)
def test_samplers_of_other_processes(process, name):
    net = Points(process=process, linear_first=process == "cld")
    config = SampleConfig(name, eta=1.0, order=0 if name == "gddim" else 2, clip=False)
    one_more(f"{process} {name}", lambda gpu, n: sampled(net, config, n), 4, 5)


def test_ancestral_sampling():
    for mean_type in ("epsilon", "xprev"):
        nets = {n: Points(mean_type=mean_type) for n in (STEPS, STEPS + 1)}
        nets[STEPS + 1].diffusion = DiffusionConfig(diffusion_steps=STEPS + 1, mean_type=mean_type)
        run = functools.partial(lambda gpu, n, nets: sampled(nets[n], SampleConfig("ddpm", clip=False), 1), nets=nets)
        one_more(f"ddpm, {mean_type}", run, STEPS, STEPS + 1)


def test_analytic_dpm():
    net = Points()
    images = torch.rand(2, 1, 4, 4)

    def run(gpu, n: int) -> None:
        process = VP(net.diffusion)
        with torch.no_grad():
            there = place(copy.deepcopy(net), GPU)
            known = analytic_statistics(there, process, [images.to(GPU)], range(STEPS))
        gpu.waits.clear()
        gpu.copies.clear()
        sampled(net, SampleConfig("analytic_dpm"), n, Given(known))

    one_more("analytic_dpm", run)


def test_currents():
    net = small("fsddim")
    one_more("fsddim", lambda gpu, n: sampled(net, SampleConfig("fsddim"), n))


SPIKING = {
    "layer_sync": {},
    "stream": {"schedule": "stream"},
    "stream, settling, bursts": {"schedule": "stream", "settle_steps": 2, "burst": 3},
    "stream, auto": {"schedule": "stream", "settle_steps": "auto"},
    "published": {"schedule": "stream", "stream_norm": "per_step", "if_neuron": "reference", "signed": False},
}


@pytest.mark.parametrize("name", [*SPIKING, "layer_sync, carried", "stream, carried"])
def test_schedules(name):
    how = SPIKING[name.removesuffix(", carried")]
    snn = ann2snn.convert(tiny(), **how)
    carry = {"carry": True} if "carried" in name else {}
    one_more(name, lambda gpu, n: sampled(snn, SampleConfig("ddim", **carry), n))


@functools.cache
def _tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return ann2snn.nets.UNet(TINY, diffusion=DiffusionConfig(diffusion_steps=STEPS)).eval()


def tiny() -> torch.nn.Module:
    return copy.deepcopy(_tiny())


TRAININGS = {
    "mse": {},
    "kl": {"train": {"loss_type": "kl"}},
    "accumulated": {"train": {"accumulate": 2}},
    "amp": {"amp": True},
    **{mean_type: {"diffusion": {"mean_type": mean_type}} for mean_type in ("xstart", "xprev", "v")},
    "cld": {"diffusion": {"process": "cld", "linear_first": True}, "network": {"in_channels": 2}},
    "blur": {"diffusion": {"process": "blur"}},
    "clipped at 2": {"train": {"act_init": "2"}},
}


def trained(gpu, n: int, network, diffusion=None, train=None, **options) -> None:
    world = World(GPU)
    settings = TrainConfig(**{"batch_size": 4, "warmup": 0} | (train or {}))
    process = DiffusionConfig(diffusion_steps=STEPS, **diffusion or {})
    trainer = Trainer(network, process, settings, world, Computing(**options))
    images = torch.randint(256, (4, 1, *network.image_size), dtype=torch.uint8)
    trainer.initialize_activations(images)
    for _ in range(n):
        loss, norm = trainer.train_step(images)
    assert loss.is_cuda and norm.is_cuda


#: What is switched on in a step; the others change what its loss is made of.
QUICK = ("mse", "accumulated", "amp", "cld")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS]
)
def test_training_steps(name):
    how = dict(TRAININGS[name])
    network = UNetConfig(**TINY.to_dict() | how.pop("network", {}))
    one_more(f"training, {name}", functools.partial(trained, network=network, **how), 1, 2)


@pytest.mark.parametrize("name", ["sdm", "fsddim"])
def test_training_steps_of_spiking_networks(name):
    train = {"loss_type": "scl"} if name == "fsddim" else {}
    one_more(f"training, {name}", functools.partial(trained, network=CONFIGS[name], train=train), 1, 2)


@pytest.mark.parametrize("method", ["proxy", "bptt"])
def test_fine_tuning_steps(method):
    """Of a block whose gap is not 0; judged before and after, which waits, but not in a step."""
    learn = ("weights",) if method == "proxy" else LEARNABLE
    tuning = BlockTuning(steps=2, lr=1e-3, checks=1, method=method, learn=learn)

    def tuned(gpu, n: int) -> None:
        ann = place(tiny(), GPU)
        snn = ann2snn.convert(ann, schedule="stream")
        with torch.no_grad():
            for parameter in snn.parameters():
                parameter.mul_(1.05)
        expand_neurons(snn, tuning.learn, "channel")
        proxy = tied_proxy(ann, snn)
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(4, 1, 4, 4, generator=generator).to(GPU), torch.tensor([1, 5, 9, 15]).to(GPU)
        name = tunable_blocks(snn)[0]
        plan = dataclasses.replace(tuning, steps=n)
        report = tune_block(
            name, Networks(ann, snn, proxy), itertools.repeat(batch), [batch], plan, lambda step, loss: None
        )
        assert report.steps == n and report.gap_before > 0

    one_more(f"fine-tuning, {method}", tuned)


def test_images_that_stay_on_the_gpu():
    data = load_dataset("fashion_mnist_10k", "", 4)
    wanted = list(itertools.islice(batches(data, 5, seed=0, flip=True), 3))

    def run(gpu, n: int) -> None:
        there = itertools.islice(batches(data, 5, seed=0, flip=True, resident=GPU), n)
        for images, same in zip(there, wanted, strict=False):
            assert images.is_cuda
            assert torch.equal(images.cpu(), same)

    one_more("resident data", run)


def test_scores():
    torch.manual_seed(0)
    images = torch.randint(256, (6, 1, 32, 32), dtype=torch.uint8)
    encoder = AutoEncoder(1, 8, 32)

    def run(gpu, n: int) -> None:
        extractor = FadExtractor(copy.deepcopy(encoder), "eval", GPU)
        statistics, inception = FeatureStatistics(extractor.dim), InceptionScore(2, 6)
        features = extractor(images).features
        for _ in range(n):
            statistics.update(features)
        inception.update(torch.randn(6, 5, device=GPU), list(range(6)))
        inception.compute()
        statistics.compute()
        there, here = precision_recall(features.to(GPU), features.flip(1).to(GPU)), features.cpu()
        assert there == precision_recall(here, here.flip(1))

    one_more("scores", run)


def test_gap_cost_and_trajectories():
    ann = tiny()
    snn = ann2snn.convert(ann, schedule="stream", settle_steps=1)
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 7.0])
    wanted = ann2snn.cost(snn, x, t).to_dict()
    with simulated_gpu():
        q, s = place(copy.deepcopy(ann), GPU), place(copy.deepcopy(snn), GPU)
        assert isinstance(s, SpikingNetwork)
        call = x.to(GPU), t.to(GPU)
        ann2snn.gap(q, s, *call)
        assert ann2snn.cost(s, *call).to_dict() == wanted
        for net in (q, s):
            ann2snn.cost(net, trajectory=[call, call], carry=net is s)


def test_a_mix_of_devices_is_found():
    with simulated_gpu() as gpu:
        x, weight = torch.ones(2, device="cuda"), torch.ones(2, requires_grad=True)
        for mixed in (lambda: x + weight, lambda: torch.stack([x, weight]), lambda: torch.addcmul(x, x, weight)):
            with pytest.raises(RuntimeError, match="on cuda and on the CPU"):
                mixed()
        assert not gpu.waits and not gpu.copies
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert bool((x + 1 > 0).all()) and x.sum().item() == 2 and x[x > 0].tolist() == [1, 1]
        assert sum(gpu.waits.values()) == 4
        torch.ones(2).to(x)
        x.copy_(torch.ones(2))
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        assert sum(gpu.copies.values()) == 2


def test_times_between_the_steps_are_the_splines():
    curve = VP(DiffusionConfig(diffusion_steps=STEPS)).log_snr
    t = torch.cat([torch.arange(STEPS, dtype=torch.float64), torch.rand(50, dtype=torch.float64) * (STEPS - 1)])
    assert torch.allclose(
        curve.log_alpha_bar_on_device(t), torch.from_numpy(curve.log_alpha_bar(t.numpy())), rtol=1e-13
    )


def test_noise_drawn_ahead_is_the_same():
    here = ImageNoise(3, [5, 9], (1, 4, 4), "cpu")
    wanted = [here() for _ in range(4)]
    with simulated_gpu() as gpu:
        there = ImageNoise(3, [5, 9], (1, 4, 4), GPU)
        found = [there() for _ in range(4)]
        assert all(draw.is_cuda for draw in found) and not gpu.waits and not gpu.copies
        for draw, same in zip(found, wanted, strict=True):
            assert torch.equal(draw.cpu(), same)


def test_a_table_is_copied_once():
    table, t = torch.rand(5, dtype=torch.float64), torch.tensor([1, 4])
    with simulated_gpu():
        like = torch.zeros(2, 1, device=GPU)
        with mock.patch("ann2snn.diffusion.vp.sent", side_effect=sent) as copied:
            rows = [gather(table, t.to(GPU), like).cpu() for _ in range(3)]
        assert copied.call_count == 1
    assert all(torch.equal(row, table[t].float()[:, None]) for row in rows)
