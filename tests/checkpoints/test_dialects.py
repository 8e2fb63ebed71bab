"""Networks of other programs: what is loaded computes what they computed, and what is not read is refused by name."""

import json

import pytest
import torch

import ann2snn
from ann2snn.diffusion.schedules import betas_of
from ann2snn.errors import UserError
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from ann2snn.nets.diffusers_unet import DiffusersUNet
from tests.foreign import diffusers, normal
from tests.foreign_files import PytorchDDPM, ddpm_torch_file, diffusers_folder, randomize, rename_in_folder
from tests.helpers import assert_close, assert_equal
from tests.scripts import SAMPLING, check, script
from tests.stages.test_bad_input import refused

TIMES = torch.tensor([3, 967])


def answer(net, size=8):
    with torch.no_grad():
        return net.double()(normal(2, 3, size, size), TIMES)


@pytest.fixture(scope="module")
def published():
    config = AttentionUNetConfig(ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn=(0, 2), norm_groups=4, image_size=8)
    return randomize(AttentionUNet(config))


@pytest.mark.parametrize("parallel", [False, True])
def test_ddpm_torch(published, tmp_path, parallel, capsys):
    ddpm_torch_file(path := tmp_path / "cifar10_3.pt", published, parallel)
    net = ann2snn.load(path, image_size=8, norm_groups=4)
    assert_equal(answer(net), answer(published))
    assert net.config.attn == (0, 2) and net.config.dropout == 0 and net.diffusion.diffusion_steps == 1000
    ann2snn.load(path, image_size=8, norm_groups=4)
    said = capsys.readouterr().err
    assert said.count("note: ") == 1 and "dropout=0.0" in said and "diffusion_steps=1000" in said
    assert "norm_groups" not in said  # it has been told
    raw = ann2snn.load(path, weights="net", image_size=8, norm_groups=4)
    assert_equal(raw.out_conv[2].weight, published.float().out_conv[2].weight / 2)


def test_ddpm_torch_without_averages_and_bare_weights(published, tmp_path):
    ddpm_torch_file(tmp_path / "raw.pt", published.float(), averaged=False)
    torch.save(published.float().state_dict(), tmp_path / "bare.pt")
    how = {"image_size": 8, "norm_groups": 4}
    assert_equal(ann2snn.load(tmp_path / "raw.pt", **how).in_conv.weight, published.in_conv.weight / 2)
    assert_equal(ann2snn.load(tmp_path / "bare.pt", **how).in_conv.weight, published.in_conv.weight)


@pytest.mark.parametrize("shape", [{}, {"attn": (0, 2), "ch_mult": (1, 2, 2), "blocks": 2}, {"attn": ()}])
def test_pytorch_ddpm(tmp_path, shape):
    theirs = PytorchDDPM(**shape)
    theirs.write(path := tmp_path / "ckpt.pt")
    net = ann2snn.load(path, norm_groups=2)
    assert isinstance(net, AttentionUNet) and net.image_size == (8, 8) and net.config.dropout == 0.1
    with torch.no_grad():
        # Their table of times is float32; some of its angles are rounded otherwise.
        assert_close(answer(net), theirs(normal(2, 3, 8, 8), TIMES), 1e-5)
    halved = ann2snn.load(path, weights="net", norm_groups=2)
    assert_equal(halved.float().out_conv[2].weight, theirs.state["tail.2.weight"] / 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},  # DDPM's own
        {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "down_block_types": ("AttnDownBlock2D",) * 3,
         "up_block_types": ("AttnUpBlock2D",) * 3},
        {"attention_head_dim": 16},  # one head at 16 channels
    ],
)  # fmt: skip
def test_diffusers_becomes_our_attention_unet(tmp_path, options):
    theirs = diffusers_folder(tmp_path / "net", **options)
    net = ann2snn.load(tmp_path / "net")
    assert isinstance(net, AttentionUNet)
    with torch.no_grad():
        assert_close(answer(net), theirs(normal(2, 3, 8, 8), TIMES).sample, 1e-12)


def test_diffusers_old_names_of_attention(tmp_path):
    theirs = diffusers_folder(tmp_path / "net")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for today, before in old.items():
            name = name.replace(f".{today}.", f".{before}.")
        return name

    rename_in_folder(tmp_path / "net", renamed)
    with torch.no_grad():
        assert_close(answer(ann2snn.load(tmp_path / "net")), theirs(normal(2, 3, 8, 8), TIMES).sample, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_head_dim": 4},
        {"add_attention": False},
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        {"block_out_channels": (8, 12)},
    ],
)
def test_other_networks_of_diffusers_stay_what_they_are(tmp_path, options):
    theirs = diffusers_folder(tmp_path / "net", **options)
    net = ann2snn.load(tmp_path / "net")
    assert isinstance(net, DiffusersUNet) and (net.in_channels, net.image_size) == (3, (8, 8))
    with torch.no_grad():
        assert_equal(answer(net), theirs(normal(2, 3, 8, 8), TIMES).sample)


@pytest.mark.parametrize(("options", "kind"), [({}, AttentionUNet), ({"attention_head_dim": 4}, DiffusersUNet)])
def test_a_network_of_diffusers_on_images_that_are_no_squares(tmp_path, options, kind):
    theirs = diffusers_folder(tmp_path / "net", sample_size=[4, 8], **options)
    net, x = ann2snn.load(tmp_path / "net").double(), normal(2, 3, 4, 8)
    assert isinstance(net, kind) and net.image_size == (4, 8)
    with torch.no_grad():
        assert_close(net(x, TIMES), theirs(x, TIMES).sample, 1e-12)
    assert ann2snn.sample(net, 1, steps=1).shape == (1, 3, 4, 8)
    ann2snn.save(net, tmp_path / "ours")
    assert ann2snn.load(tmp_path / "ours").image_size == (4, 8)


def test_a_network_of_diffusers_goes_all_the_way(tmp_path):
    diffusers_folder(tmp_path / "net", attention_head_dim=4)
    net = ann2snn.load(tmp_path / "net")
    call = (normal(2, 3, 8, 8).float(), TIMES)
    ann2snn.save(net, tmp_path / "ours")
    assert_equal(answer(ann2snn.load(tmp_path / "ours")), answer(ann2snn.load(tmp_path / "net")))
    quantized = ann2snn.quantize(net, 2, calibrate=[call])
    ann2snn.save(quantized, tmp_path / "quantized.pt")
    again = ann2snn.load(tmp_path / "quantized.pt")
    with torch.no_grad():
        assert_equal(again(*call), quantized(*call))
        snn = ann2snn.convert(again)
        assert_equal(snn(*call), again(*call))
        ann2snn.save(snn, tmp_path / "snn")
        assert_equal(ann2snn.load(tmp_path / "snn")(*call), again(*call))
        streamed = ann2snn.convert(again, schedule="stream", settle_steps="auto").double()
        assert_equal(streamed(call[0].double(), TIMES), again.double()(call[0].double(), TIMES))
    assert ann2snn.sample(snn, 1, steps=2, progress=False).shape == (1, 3, 8, 8)
    names = [row.block for row in ann2snn.gap(again.float(), snn, *call).rows()]
    assert {"model.conv_in", "model.mid_block", "model.up_blocks.1", "prediction"} <= set(names)


def test_networks_quantized_in_python_are_saved_as_such(published, tmp_path):
    call = (normal(2, 3, 8, 8).float(), TIMES)
    for how in ({}, {"signed": True}):
        quantized = ann2snn.quantize(published.float(), 3, calibrate=[call], **how)
        ann2snn.save(quantized, tmp_path / f"net{len(how)}")
        with torch.no_grad():
            assert_equal(ann2snn.load(tmp_path / f"net{len(how)}")(*call), quantized(*call))
    by_channel = ann2snn.quantize(published.float(), 3, calibrate=[call], granularity="channel", skip=["out_conv.2"])
    with pytest.raises(UserError, match="state_dict"):
        ann2snn.save(by_channel, tmp_path / "by_channel")


@pytest.mark.parametrize(
    ("schedule", "ours"), [("linear", "linear"), ("scaled_linear", "quad"), ("squaredcos_cap_v2", "cosine")]
)
def test_a_pipeline_tells_its_process(tmp_path, schedule, ours, capsys):
    how = {"beta_schedule": schedule, "prediction_type": "v_prediction", "variance_type": "fixed_small"}
    scheduler = diffusers().DDPMScheduler(num_train_timesteps=200, beta_start=2e-4, beta_end=0.03, **how)
    diffusers_folder(tmp_path / "pipe", scheduler)
    diffusion = ann2snn.load(tmp_path / "pipe").diffusion
    assert (diffusion.schedule, diffusion.mean_type, diffusion.var_type) == (ours, "v", "fixedsmall")
    assert diffusion.diffusion_steps == 200 and "note" not in capsys.readouterr().err
    torch.testing.assert_close(betas_of(diffusion).float(), scheduler.betas, rtol=2e-5, atol=1e-7)


def change(path, **settings):
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel of diffusers; only UNet2DModel"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"down_block_types": ["SkipDownBlock2D"] * 2}, "down_block_types"),
        ({"block_out_channels": [8, 16, 32]}, "refusing"),
        ({"block_out_channels": "wide"}, "block_out_channels"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"out_channels": 5}, "output channels"),
        ({"attention_head_dim": [3]}, "refusing"),
        ({"norm_eps": "x"}, "norm_eps"),
        ({"act_fn": ["x"]}, "refusing"),
        ({"unheard_of": 1, "add_attention": False}, "unheard_of"),
        ({"sample_size": [8, 8, 8]}, "sample_size"),
    ],
)
def test_other_settings_of_diffusers_are_refused_by_name(tmp_path, settings, words):
    diffusers_folder(tmp_path / "net")
    change(tmp_path / "net" / "config.json", **settings)
    with pytest.raises(UserError, match=words):
        ann2snn.load(tmp_path / "net")


@pytest.mark.parametrize(
    "settings",
    [{"beta_schedule": "sigmoid"}, {"trained_betas": [0.1]}, {"prediction_type": 3}, {"num_train_timesteps": "x"}],
)
def test_other_processes_of_diffusers_are_refused(tmp_path, settings):
    diffusers_folder(tmp_path / "pipe", diffusers().DDPMScheduler())
    change(tmp_path / "pipe" / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(UserError, match="scheduler_config.json"):
        ann2snn.load(tmp_path / "pipe")


def spoiled(published, path, spoil):
    state = dict(published.float().state_dict())
    spoil(state)
    torch.save({"model": state}, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("middle.1.norm.bias"), "lacks middle.1.norm.bias"),
        (lambda state: state.pop("downsamples.level_1.0.conv1.weight"), "its levels"),
        (lambda state: state.update({"in_conv.weight": torch.zeros(3)}), "no convolution"),
        (lambda state: state.update({"in_conv.weight": torch.full((8, 3, 3, 3), torch.nan)}), "not finite"),
        (lambda state: state.update({"embed.0.weight": "text"}), "floating-point"),
        (lambda state: state.update({"module.in_conv.weight": torch.zeros(1)}), "the same one"),
    ],
)
def test_damaged_ddpm_torch_files_are_refused(published, tmp_path, spoil, words):
    spoiled(published, tmp_path / "net.pt", spoil)
    with pytest.raises(UserError, match=words):
        ann2snn.load(tmp_path / "net.pt", norm_groups=4, image_size=8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("upblocks.0.attn.proj_k.weight"), "lacks a projection"),
        (lambda state: state.pop("middleblocks.0.attn.proj_q.weight"), "its middle has no attention"),
        (lambda state: state["time_embedding.timembedding.0.weight"].add_(0.1), "sinusoids"),
        (lambda state: state.pop("head.weight"), "head.weight"),
        (lambda state: state.pop("tail.0.bias"), "out_conv.0.bias"),
    ],
)
def test_damaged_pytorch_ddpm_files_are_refused(tmp_path, spoil, words):
    theirs = PytorchDDPM()
    spoil(theirs.state)
    theirs.write(tmp_path / "net.pt", net_model=theirs.state)
    with pytest.raises(UserError, match=words):
        ann2snn.load(tmp_path / "net.pt", norm_groups=2)


def test_groups_that_do_not_divide_name_the_setting(published, tmp_path):
    ddpm_torch_file(tmp_path / "net.pt", published)
    with pytest.raises(UserError, match="--norm_groups=32: must divide --ch=8"):
        ann2snn.load(tmp_path / "net.pt")


def test_what_is_none_of_these_is_told_what_is_read(tmp_path):
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="ddpm-torch, and folders of this program and of diffusers"):
        ann2snn.load(tmp_path / "net.pt")


def test_a_file_of_ours_cannot_say_that_its_settings_were_assumed(published, tmp_path):
    with pytest.raises(UserError, match="assumed: what every file holds"):
        ann2snn.save(published.float(), tmp_path / "net.pt", assumed=["norm_groups"])
    ann2snn.save(published.float(), tmp_path / "net.pt")
    with pytest.raises(UserError, match="--norm_groups=2 contradicts"):
        ann2snn.load(tmp_path / "net.pt", norm_groups=2)


def test_scripts_read_them_and_flags_tell_what_files_do_not(published, tmp_path):
    ddpm_torch_file(tmp_path / "net.pt", published.float())
    flags = ["--eval", f"--eval_model_path={tmp_path}/net.pt", f"--logdir={tmp_path}/run", *SAMPLING]
    flags += ["--sample_only", "--num_images=2", "--norm_groups=4", "--img_size=8", "--T=40", "--num_threads=1"]
    done = script("evaluate.py", *flags)
    check(done)
    assert "beta_T=0.02" in done.stderr and "diffusion_steps" not in done.stderr
    assert "--T=40" in (tmp_path / "run" / "flagfile.evaluate.txt").read_text()
    refused(script("evaluate.py", *flags, "--ch=16"), "--ch=16 contradicts", "made with 8")
    torch.save({"weights": {}}, tmp_path / "strange.pt")
    refused(script("evaluate.py", *flags, f"--eval_model_path={tmp_path}/strange.pt"), "none of what can be read")
