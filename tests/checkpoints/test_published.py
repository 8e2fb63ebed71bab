"""Published checkpoints of SDDPM, SDM and FSDDIM: weights alone, from whose names and shapes a network is made."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.published import infer_direct_config
from ann2snn.config import DiffusionConfig
from ann2snn.errors import UserError
from ann2snn.nets.architecture import build_network
from ann2snn.nets.direct import DirectConfig, DirectDenoiser
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig
from tests.fill import deterministic_fill
from tests.helpers import assert_equal
from tests.nets.sddpm_exact import published_keys

SHAPE = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": 50}
SDDPM_FILE = SDDPMConfig(**SHAPE)
SDM_FILE = SDDPMConfig(**SHAPE | {"num_res_blocks": 2, "in_channels": 3}, tsm=True, spike_steps=3)
FSDDIM_FILE = FSDDIMConfig(**SHAPE | {"ch_mult": (1, 2, 3)})
FILES = pytest.mark.parametrize("config", [SDDPM_FILE, SDM_FILE, FSDDIM_FILE], ids=["sddpm", "sdm", "fsddim"])


def filled(config: DirectConfig) -> DirectDenoiser:
    net = build_network(config).eval()
    deterministic_fill(net)
    return net


def payload_of(config: DirectConfig, state: dict[str, Tensor], **changes: object) -> dict:
    """What the published programs write."""
    if isinstance(config, FSDDIMConfig):
        whole = {"epoch": 1499, "model_state_dict": state, "encoder_state_dict": {}, "decoder_state_dict": {}}
        return whole | changes
    return {"net_model": state} | changes


def published(path: Path, config: DirectConfig, edit=lambda state: None, **changes: object) -> DirectDenoiser:
    """Write a published file of a small network, edited; the network."""
    net = filled(config)
    state = net.state_dict()
    edit(state)
    torch.save(payload_of(config, state, **changes), path)
    return net


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "published.pt"


@torch.no_grad()
@FILES
@pytest.mark.parametrize("weights", ["ema", "net"])
def test_a_published_file_is_the_network_it_was(config, weights, path):
    net = published(path, config)
    loaded = checkpoint.load(path, weights=weights, image_size=8)
    assert loaded.net.config == config and loaded.weights == "net" and loaded.step == 0
    assert isinstance(loaded.net, DirectDenoiser) and not loaded.net.training
    x = torch.randn(2, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_equal(loaded.net(x, torch.tensor([3, 49])), net(x, torch.tensor([3, 49])))


def test_the_process_is_that_of_the_published_training(path):
    for config, wanted in (
        (SDDPM_FILE, DiffusionConfig(diffusion_steps=50)),
        (FSDDIM_FILE, DiffusionConfig(diffusion_steps=50, schedule="cosine", mean_type="v")),
    ):
        published(path, config)
        assert checkpoint.load(path, image_size=8).net.diffusion == wanted


def test_a_training_checkpoint_tells_step_and_image_size(path):
    x_T, optimizer = torch.zeros(4, 1, 16, 16), {"state": {}, "param_groups": [{"lr": 2e-4}]}
    published(path, SDDPM_FILE, step=120, x_T=x_T, optim=optimizer)
    loaded = checkpoint.load(path)
    assert loaded.step == 120 and loaded.net.image_size == (16, 16)
    with pytest.raises(UserError, match="--img_size=8 contradicts .*, which was made with 16"):
        checkpoint.load(path, image_size=8)
    published(path, SDDPM_FILE)
    assert checkpoint.load(path).net.image_size == (32, 32)


@FILES
def test_a_prefix_of_parallel_training_is_taken_off(config, path):
    net = filled(config)
    torch.save(payload_of(config, {f"module.{name}": value for name, value in net.state_dict().items()}), path)
    assert list(checkpoint.load(path, image_size=8).net.state_dict()) == list(net.state_dict())


# ---- what the file does not tell ------------------------------------------------------------------------------------


def test_time_steps_are_told_by_tsm_alone(path):
    published(path, SDDPM_FILE)
    assert checkpoint.load(path, image_size=8).net.spike_steps == 4
    assert checkpoint.load(path, image_size=8, spike_steps=7).net.spike_steps == 7
    published(path, FSDDIM_FILE)
    assert checkpoint.load(path, image_size=8).net.spike_steps == 8
    published(path, SDM_FILE)
    assert checkpoint.load(path, image_size=8, spike_steps=3).net.spike_steps == 3
    message = refusal(path, image_size=8, spike_steps=4)
    assert "--timestep=4" in message and "3 time steps" in message
    published(path, SDDPM_FILE)
    assert "--timestep=1000" in refusal(path, image_size=8, spike_steps=1000)


def test_flags_tell_what_weights_cannot(path):
    published(path, FSDDIM_FILE)
    flags = {"norm": ("norm", "scaled"), "decay": ("decay", 0.5), "ch_mult": ("ch_mult", [1, 2, 3])}
    config = checkpoint.load(path, image_size=8, expected=flags).net.config
    assert config == replace(FSDDIM_FILE, norm="scaled", decay=0.5)
    assert "--decay=2" in refusal(path, image_size=8, expected={"decay": ("decay", 2.0)})
    assert "--ch=16" in refusal(path, image_size=8, expected={"ch": ("ch", 16)})
    assert "--mean_type=epsilon" in refusal(path, image_size=8, expected={"mean_type": ("mean_type", "epsilon")})
    published(path, SDDPM_FILE)
    flags = {"corrections": ("corrections", ["tail", "readout"])}
    assert checkpoint.load(path, image_size=8, expected=flags).net.config.corrections == ("readout", "tail")
    assert "--bit=2" in refusal(path, image_size=8, bit=2)
    checkpoint.load(path, image_size=8, bit=32)


def test_our_own_files_are_told_nothing(path):
    net = filled(SDDPM_FILE)
    config = {"arch": "sddpm", "unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    checkpoint.save(path, {"kind": "direct", "format": 1, "net_model": net.state_dict(), "config": config})
    assert "no weights under 'ema_model'" in refusal(path)
    assert checkpoint.load(path, weights="net", spike_steps=4).net.config == SDDPM_FILE
    message = refusal(path, weights="net", spike_steps=5)
    assert "--timestep=5" in message and "made with 4" in message


# ---- strictness -----------------------------------------------------------------------------------------------------

LATE = {"sddpm": "last_bn.running_var", "sdm": "upblocks.0.shortcut.tsmp", "fsddim": "final_res_block.bn1.bias"}


@pytest.mark.parametrize("name", LATE)
def test_missing_surplus_and_misshapen_entries_are_refused_by_name(name, path):
    config, entry = {"sddpm": SDDPM_FILE, "sdm": SDM_FILE, "fsddim": FSDDIM_FILE}[name], LATE[name]
    published(path, config, lambda state: state.pop(entry))
    assert f"it lacks {entry}" in refusal(path, image_size=8)
    published(path, config, lambda state: state.update(surplus=torch.zeros(1)))
    assert "unknown entry surplus" in refusal(path, image_size=8)
    published(path, config, lambda state: state.update({entry: torch.zeros(1, 99)}))
    assert entry in refusal(path, image_size=8)
    published(path, config, lambda state: state.update({entry: state[entry] * torch.nan}))
    assert f"{entry} holds values that are not finite" in refusal(path, image_size=8)


def test_a_negative_variance_is_refused(path):
    published(path, SDDPM_FILE, lambda state: state["bn.running_var"].neg_())
    assert "bn: running_var holds negative variances" in refusal(path, image_size=8)


def test_an_integer_is_no_weight_and_a_counter_is(path):
    published(path, SDDPM_FILE, lambda state: state.update({"bn.bias": torch.zeros(8, dtype=torch.int64)}))
    assert "'bn.bias'" in refusal(path, image_size=8)


def test_weights_stored_twice_over_are_the_published_ones_or_ours_but_not_both(path):
    net = filled(SDDPM_FILE)
    state = net.state_dict()
    torch.save({"net_model": state, "model_state_dict": {"pe": torch.zeros(1)}}, path)
    assert checkpoint.load(path, image_size=8).net.config == SDDPM_FILE
    torch.save({"model_state_dict": {"pe": torch.zeros(1)}}, path)
    assert "not those of this U-Net" in refusal(path, weights="net")
    torch.save({"model_state_dict": [1, 2]}, path)
    assert "no weights" in refusal(path)


def marks(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Entries of these shapes, names with __ for dots."""
    return {name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}


TIME = {"time_embedding__timembedding__0__weight": (9, 8), "conv_identity__weight": (8, 8, 3, 3)}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (marks(conv_identity__weight=(1,)), "conv.weight is missing"),
        (marks(**TIME, conv__weight=(8,)), "conv.weight is no 4-D tensor"),
        (marks(**TIME, conv__weight=(8, 1, 3, 3)), "its blocks are not those"),
        (marks(**TIME, conv__weight=(0, 1, 3, 3), downblocks__0__conv2__weight=(8, 8, 3, 3)), "its blocks are not"),
        (marks(**TIME, conv__weight=(8, 7, 3, 3), downblocks__0__conv2__weight=(8, 8, 3, 3)), "7 image channels"),
        (marks(**TIME, conv__weight=(8, 1, 3, 3), downblocks__0__conv2__weight=(80000, 8, 1, 1)), "--ch_mult=10000"),
        (
            marks(
                **TIME, conv__weight=(8, 1, 3, 3), downblocks__0__conv2__tsmconv__weight=(8, 8, 3, 3), conv__tsmp=(500,)
            ),
            "conv.tsmp is no 5-D tensor",
        ),
        (
            marks(
                **TIME,
                conv__weight=(8, 1, 3, 3),
                downblocks__0__conv2__tsmconv__weight=(8, 8, 3, 3),
                conv__tsmp=(500, 1, 1, 1, 1),
            ),
            "--timestep=500",
        ),
        (marks(pe=(9, 8), conv_in__weight=(8, 1)), "conv_in.weight is no 5-D tensor"),
        (marks(pe=(9, 8), conv_in__weight=(8, 1, 3, 3, 1)), "its blocks are not"),
        (marks(pe=(9, 8), conv_in__weight=(8, 1, 3, 3, 1), downs__9999__9999__x=(1,)), "downs.0.0.weight is missing"),
        (
            marks(pe=(9, 8), conv_in__weight=(0, 1, 3, 3, 1), downs__0__0__weight=(8, 1, 1, 1, 1)),
            "8 channels at a level are no multiple of 0",
        ),
        (
            marks(pe=(9,), conv_in__weight=(8, 1, 3, 3, 1), downs__0__1__weight=(8, 1, 1, 1, 1), downs__0__0__x=(1,)),
            "pe is no 2-D tensor",
        ),
    ],
)
def test_shapes_of_no_network_are_refused_in_one_line(state, words, path):
    torch.save({"net_model": state}, path)
    assert words in refusal(path)


def test_other_entries_are_no_published_network():
    with pytest.raises(UserError, match="not those of SDDPM, SDM or FSDDIM"):
        infer_direct_config({"head.weight": torch.zeros(1)}, "x.pt", None, 32)


# ---- the published sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "steps"), [(3, None), (1, None), (3, 8)])
def test_the_published_sddpm_and_sdm_are_recognised(channels, steps):
    state = {name: torch.empty(shape, device="meta") for name, shape in published_keys(channels, steps).items()}
    config = infer_direct_config(state, "x.pt", None, 32)
    assert config == SDDPMConfig(in_channels=channels, tsm=steps is not None, spike_steps=steps or 4)


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_the_published_fsddim_is_recognised(channels, size):
    with torch.device("meta"):
        state = build_network(FSDDIMConfig(in_channels=channels)).state_dict()
    assert len(state) == 452
    assert infer_direct_config(state, "x.pt", 4, size) == FSDDIMConfig(channels, size, spike_steps=4)
    assert infer_direct_config(state, "x.pt", None, size).spike_steps == 8
