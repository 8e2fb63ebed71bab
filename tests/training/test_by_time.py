"""The weighted loss of a training step, and its unweighted parts by diffusion time."""

import math

import pytest
import torch

from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.diffusion import VP
from ann2snn.diffusion.process import make_process
from ann2snn.distributed.world import ALONE
from ann2snn.training import by_time
from ann2snn.training.trainer import Trainer

SHAPE = {"ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "norm_groups": 2, "image_size": 4, "in_channels": 1, "bits": 4}


def trainer(**options) -> Trainer:
    network = UNetConfig(**SHAPE, dropout=0.0, diffusion_steps=40)
    train = TrainConfig(batch_size=16, total_steps=3, act_init="1.0", warmup=0, **options)
    made = Trainer(network, DiffusionConfig(diffusion_steps=40), train, ALONE)
    made.initialize_activations(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    return made


def images() -> torch.Tensor:
    return torch.randint(0, 256, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_reports_the_quarters_of_its_loss(parts):
    made = trainer(accumulate=parts)
    loss, _ = made.train_step(images())
    sums, counts = made.by_time
    assert counts.sum() == 16 and float(sums.sum()) / 16 == pytest.approx(float(loss), rel=1e-6)
    figures = by_time.means(made.by_time, ALONE)
    assert list(figures) == [f"loss_q{i + 1}" for i in range(4) if counts[i]]


def test_weights_change_the_loss_and_not_the_quarters():
    plain, weighted = trainer(), trainer(loss_weight="min_snr", min_snr_gamma=0.5)
    losses = [float(made.train_step(images())[0]) for made in (plain, weighted)]
    assert losses[1] < 0.9 * losses[0]
    torch.testing.assert_close(weighted.by_time, plain.by_time, rtol=0, atol=0)
    # The same by hand: at step 0, where both have the same weights.
    made, vp = trainer(loss_weight="min_snr", min_snr_gamma=0.5), VP(DiffusionConfig(diffusion_steps=40))
    x_0 = images().float() / 127.5 - 1
    t, noise = made.draw(x_0)
    alpha = vp.alphas_bar[t].float().view(-1, 1, 1, 1)
    x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
    weight = torch.minimum(0.5 * (1 - alpha) / alpha, torch.ones(())).flatten()
    expected = ((made.net(x_t, t) - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
    assert losses[1] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_quarters_of_whole_and_of_real_times():
    vp, blur = make_process(DiffusionConfig(diffusion_steps=8), 4), make_process(DiffusionConfig(process="blur"), 4)
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    whole = by_time.tally(vp, torch.tensor([0, 1, 2, 7]), losses)
    real = by_time.tally(blur, torch.tensor([0.01, 0.2, 0.3, 0.999], dtype=torch.float64), losses)
    for found in (whole, real):
        assert found.tolist() == [[3.0, 4.0, 0.0, 8.0], [2.0, 1.0, 0.0, 1.0]]
    assert by_time.means(whole, ALONE) == {"loss_q1": 1.5, "loss_q2": 4.0, "loss_q4": 8.0}
    nothing = by_time.tally(vp, torch.tensor([3]), torch.tensor([math.nan]))
    assert math.isnan(by_time.means(nothing, ALONE)["loss_q2"])
