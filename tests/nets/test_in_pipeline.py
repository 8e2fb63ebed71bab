"""Networks of this program in diffusers' pipelines make the images that diffusers' own, and one another, make."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ann2snn

diffusers = pytest.importorskip("diffusers")


def pipeline(kind: str, unet, **scheduler):
    steps = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=100, **scheduler)
    made = getattr(diffusers, f"{kind}Pipeline")(unet=unet, scheduler=steps)
    made.set_progress_bar_config(disable=True)
    return made


def images(made, steps=4, **how):
    generator = torch.Generator().manual_seed(0)
    return made(batch_size=2, num_inference_steps=steps, generator=generator, output_type="np", **how).images


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A network of diffusers in float32, and its folder. Two heads: it stays diffusers' own network."""
    torch.manual_seed(0)
    made = {}
    for name, head in (("ours", None), ("theirs", 8)):
        model = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=head,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        folder = tmp_path_factory.mktemp(name)
        pipeline("DDPM", model).save_pretrained(folder)
        made[name] = model, folder
    return made


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_loaded_network_makes_the_images_of_diffusers_own(theirs, kind, name):
    model, folder = theirs[name]
    net = ann2snn.load(folder)
    assert type(net).__name__ == ("AttentionUNet" if name == "ours" else "DiffusersUNet")
    expected, got = (images(pipeline(kind, unet)) for unet in (model, ann2snn.in_pipeline(net)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_its_neurons_make_the_images_of_its_quantizers(theirs, kind, name):
    net = ann2snn.load(theirs[name][1])
    calls = [(torch.randn(2, 1, 8, 8), torch.tensor([9, 90]))]
    quantized = ann2snn.quantize(net, 4, calibrate=calls)
    snn = ann2snn.convert(quantized)
    made = pipeline(kind, ann2snn.in_pipeline(quantized))
    expected = images(made)
    made.unet = ann2snn.in_pipeline(snn)
    with snn.carrying():
        np.testing.assert_array_equal(images(made), expected)
        assert snn.restarts == 1


def test_our_own_unet_in_a_pipeline_samples_as_ann2snn_does():
    torch.manual_seed(0)
    about = ann2snn.DiffusionConfig(diffusion_steps=100)
    settings = {"ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "norm_groups": 4, "image_size": 4, "bit": 8}
    net = ann2snn.build_unet(diffusion=about, diffusion_steps=100, **settings).double().eval()
    grid = {"beta_start": about.beta_1, "beta_end": about.beta_T, "timestep_spacing": "trailing"}
    made = pipeline("DDIM", ann2snn.in_pipeline(net), **grid)
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = ann2snn.sample(net, 2, steps=4, skip="trailing", x_T=x_T, progress=False)
    got = (images(made, use_clipped_model_output=True) * 255).round().astype(np.int64)
    assert np.abs(got - expected.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_the_forms_of_a_call_and_what_is_refused():
    net = ann2snn.build_unet(ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, image_size=4).eval()
    unet, x = ann2snn.in_pipeline(net), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = net(x, torch.tensor([7, 7]))
        for t in (7, torch.tensor(7), torch.tensor([7, 7])):
            assert torch.equal(unet(x, t).sample, expected) and torch.equal(unet(x, t, return_dict=False)[0], expected)
    with pytest.raises(ann2snn.UserError, match="knows no classes"):
        unet(x, 7, class_labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ann2snn.UserError, match="does not say which images"):
        ann2snn.in_pipeline(torch.nn.Linear(2, 2))


def test_a_network_of_classes_is_told_them():
    settings = {"ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "norm_groups": 4, "image_size": 4, "num_classes": 3}
    net = ann2snn.build_unet(**settings).eval()
    x, t, y = torch.randn(2, 3, 4, 4), torch.tensor([7, 7]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(ann2snn.in_pipeline(net)(x, 7, class_labels=y).sample, net(x, t, y))


def test_a_variance_that_is_told_goes_to_a_scheduler_that_takes_it_alone():
    told = ann2snn.DiffusionConfig(diffusion_steps=100, var_type="learned_range")
    net = ann2snn.build_unet(
        bit=2, in_channels=1, image_size=8, ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, diffusion=told
    ).eval()
    assert images(pipeline("DDPM", ann2snn.in_pipeline(net), variance_type="learned_range")).shape == (2, 8, 8, 1)
    with pytest.raises(ann2snn.UserError, match='use DDPMScheduler with variance_type="learned_range", or set'):
        images(pipeline("DDIM", ann2snn.in_pipeline(net)))
    net.diffusion = replace(told, var_type="fixedlarge")
    assert images(pipeline("DDIM", ann2snn.in_pipeline(net))).shape == (2, 8, 8, 1)
