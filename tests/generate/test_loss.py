"""`ann2snn.denoising_loss` is the mean squared error of a prediction, with the same noise for every network."""

import pytest
import torch

import ann2snn
from ann2snn import DiffusionConfig, UserError
from ann2snn.config import LEARNED
from tests.helpers import random_ann

IMAGES = torch.randint(256, (70, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_network_that_predicts_nothing_has_the_variance_of_the_noise_as_its_loss():
    net = random_ann(diffusion_steps=10)
    images = IMAGES[:, :, : net.image_size.height, : net.image_size.width]
    silent = type(net).forward
    try:
        type(net).forward = lambda self, x, t: torch.zeros_like(x)
        first, again, other = (ann2snn.denoising_loss(net, images, seed=seed) for seed in (0, 0, 1))
    finally:
        type(net).forward = silent
    assert first == again != other and first == pytest.approx(1, abs=0.06)


def test_images_that_are_not_the_networks_are_refused():
    with pytest.raises(UserError, match="images: "):
        ann2snn.denoising_loss(random_ann(diffusion_steps=10), IMAGES[:, :1])


def test_a_variance_that_is_told_does_not_count():
    told = ann2snn.build_unet(
        bit=32,
        ch=8,
        ch_mult=(1,),
        num_res_blocks=1,
        norm_groups=4,
        image_size=8,
        diffusion=DiffusionConfig(10, var_type=LEARNED),
    )
    images = IMAGES[:9]
    answers = torch.randn(2, 9, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    told.forward = lambda x, t: answers.transpose(0, 1).flatten(1, 2)
    loss = ann2snn.denoising_loss(told, images)
    told.forward, told.diffusion = lambda x, t: answers[0], DiffusionConfig(10)
    assert loss == ann2snn.denoising_loss(told, images)
