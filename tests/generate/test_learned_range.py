"""A network that tells its variance: built, trained, begun from another, converted, carried, guided, saved, loaded."""

from dataclasses import replace

import pytest
import torch

import ann2snn
from ann2snn.config import DiffusionConfig, SampleConfig, TrainConfig
from ann2snn.diffusion.loss import hybrid_loss
from ann2snn.diffusion.vp import VP
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.generate.classes import branches_of
from ann2snn.nets.architecture import asked_for_variance, build_network
from ann2snn.nets.attention_unet import AttentionUNetConfig
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.training.initial import begun_from, quantized_state
from ann2snn.training.trainer import Trainer
from tests.foreign_files import diffusers, diffusers_folder
from tests.helpers import assert_equal, random_ann, random_batch

LEARNED = DiffusionConfig(diffusion_steps=20, var_type="learned_range")
SHAPE = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "image_size": 8}


@pytest.fixture(scope="module")
def ann():
    net = random_ann(1, in_channels=1, out_channels=2)
    net.diffusion = LEARNED
    return net


def test_the_process_makes_the_network_s_width():
    net = ann2snn.build_unet(**SHAPE, bit=2, diffusion=LEARNED)
    assert (net.in_channels, net.out_channels, net.config.out_channels) == (3, 6, 6)
    assert net(*random_batch(net.double())).shape == (2, 6, 8, 8)
    plain = ann2snn.build_unet(**SHAPE, bit=2)
    assert plain.out_channels == 3 and plain.config == type(plain.config)(
        **{
            name: value
            for name, value in plain.config.to_dict().items()
            if name != "out_channels"  # an old checkpoint's
        }
    )
    with pytest.raises(UserError, match="not with --arch=sddpm"):
        asked_for_variance(SDDPMConfig(), LEARNED)
    with pytest.raises(UserError, match="5 output channels for 3 input"):
        ann2snn.build_unet(**SHAPE, out_channels=5)


def test_its_spiking_network_makes_its_images_carried_or_not(ann):
    snn, how = ann2snn.convert(ann), {"sampler": "ddpm_strided", "steps": 4, "progress": False}
    images = ann2snn.sample(ann, 3, **how)
    for carry in (False, True):
        assert_equal(ann2snn.sample(snn, 3, carry=carry, **how), images)
    ann.diffusion = replace(LEARNED, var_type="fixedsmall")
    assert not torch.equal(ann2snn.sample(ann, 3, **how), images)
    ann.diffusion = LEARNED
    stream = ann2snn.convert(ann, schedule="stream", settle_steps="auto")
    call = random_batch(ann)
    torch.testing.assert_close(stream(*call), ann(*call), rtol=0, atol=1e-12)
    assert ann2snn.cost(snn, *call).total("spikes") > 0 and snn.out_channels == 2


def test_it_is_saved_with_what_it_tells(ann, tmp_path):
    for net in (ann, ann2snn.convert(ann)):
        ann2snn.save(net, tmp_path / type(net).__name__)
        again = ann2snn.load(tmp_path / type(net).__name__)
        assert again.diffusion.var_type == "learned_range" and again.out_channels == 2
        assert_equal(again.double()(*random_batch(ann)), net(*random_batch(ann)))
    wrong = random_ann(1, in_channels=1)
    wrong.diffusion = LEARNED
    with pytest.raises(UserError, match="not trained to tell its variance"):
        ann2snn.save(wrong, tmp_path / "wrong")


def test_guidance_is_of_the_prediction_and_the_variance_of_the_class():
    net = random_ann(1, in_channels=1, out_channels=2, num_classes=3)
    branches = branches_of(net, SampleConfig("ddpm_strided", 4, guidance=0.7), [0, 1], None, "cpu")
    x, t = random_batch(net)
    with_class, without = net(x, t, torch.tensor([0, 1])), net(x, t, torch.tensor([3, 3]))
    got = branches.combined(net(*branches.call(x, t)), net.in_channels)
    torch.testing.assert_close(got[:, :1], 1.7 * with_class[:, :1] - 0.7 * without[:, :1])
    torch.testing.assert_close(got[:, 1:], with_class[:, 1:])


def trainer(network, diffusion, **options):
    train = TrainConfig(batch_size=8, total_steps=2, act_init="1.0", warmup=0, dropout=0.0, **options)
    return Trainer(network, diffusion, train, ALONE)


def test_a_step_of_training_takes_the_hybrid_loss():
    network = replace(ann2snn.build_unet(**SHAPE, bit=2, diffusion=LEARNED, dropout=0.0).config)
    made = trainer(network, LEARNED)
    images = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made.initialize_activations(images)
    x_0 = images.float() / 127.5 - 1
    t, noise = made.draw(x_0)
    expected = hybrid_loss(made.net, VP(LEARNED), x_0, t, noise).mean()
    before = made.net.tail[-1].weight.detach().clone()
    loss, _ = made.train_step(images)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (made.net.tail[-1].weight != before).flatten(1).any(1).all()  # all six channels have learned
    with pytest.raises(UserError, match="--var_type=fixedlarge: the network tells its variance"):
        trainer(network, replace(LEARNED, var_type="fixedlarge"))
    with pytest.raises(UserError, match="not trained to tell"):
        trainer(replace(network, out_channels=None), LEARNED)


@pytest.mark.parametrize(("arch", "bits"), [("unet", 32), ("attention", 2)])
def test_begun_from_a_network_that_tells_none_it_predicts_the_same_and_v_is_zero(arch, bits):
    if arch == "unet":
        source = random_ann(1, bits=bits, image_size=8, diffusion_steps=4).float()
    else:
        config = AttentionUNetConfig(**SHAPE, attn=(1,), block_size=2, bits=bits)
        source = build_network(config).eval()
    source.diffusion = DiffusionConfig(diffusion_steps=4)  # on whose path it is calibrated
    network = asked_for_variance(replace(source.config, bits=2), LEARNED)
    begun, same = (build_network(config, LEARNED).eval() for config in (network, replace(source.config, bits=2)))
    for net in (begun, same):
        net.load_state_dict(quantized_state(source, net.config, 0))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    with torch.no_grad():
        answer = begun(x, t)
        torch.testing.assert_close(answer[:, :3], same(x, t), rtol=0, atol=1e-5)
    assert answer.shape[1] == 6 and not answer[:, 3:].any() and answer.any()


def test_quantized_weights_cannot_be_widened():
    with pytest.raises(UserError, match="--var_type=learned_range: here quantizes each layer's weights together"):
        begun_from(random_ann(weight_bits=4).config, LEARNED, None, None, "here")


@pytest.mark.parametrize("heads", [{}, {"attention_head_dim": 4}])  # our attention U-Net, and diffusers' own
def test_networks_of_diffusers(tmp_path, heads, capsys):
    how = {"variance_type": "learned_range", "num_train_timesteps": 20}
    theirs = diffusers_folder(tmp_path / "pipe", diffusers().DDPMScheduler(**how), out_channels=6, **heads)
    net = ann2snn.load(tmp_path / "pipe").double()
    assert net.diffusion.var_type == "learned_range" and net.out_channels == 6 and "note" not in capsys.readouterr().err
    x, t = torch.randn(2, 3, 8, 8).double(), torch.tensor([3, 19])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t), theirs(x, t).sample, rtol=1e-9, atol=1e-9)
    assert ann2snn.in_pipeline(net).config.out_channels == 6
    # Whose scheduler does not say is taken to tell it; one that says otherwise is sampled as it says.
    diffusers_folder(tmp_path / "silent", out_channels=6, **heads)
    assert ann2snn.load(tmp_path / "silent").diffusion.var_type == "learned_range"
    assert "var_type=learned_range" in capsys.readouterr().err
    for kind, words in (("fixed_small", None), ("learned", "variance_type=learned:")):
        diffusers_folder(tmp_path / kind, diffusers().DDPMScheduler(variance_type=kind), out_channels=6, **heads)
        if words is None:
            assert ann2snn.load(tmp_path / kind).diffusion.var_type == "fixedsmall"
        else:
            with pytest.raises(UserError, match=words):
                ann2snn.load(tmp_path / kind)
    diffusers_folder(tmp_path / "lacking", diffusers().DDPMScheduler(**how), **heads)
    with pytest.raises(UserError, match="not trained to tell its variance"):
        ann2snn.load(tmp_path / "lacking")
