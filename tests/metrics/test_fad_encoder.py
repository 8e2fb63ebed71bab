"""The autoencoder's layout and its files."""

import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics.fad_encoder import AutoEncoder, load_autoencoder, save_autoencoder
from ann2snn.metrics.weights import digest


@pytest.mark.parametrize(("channels", "latent", "side"), [(1, 64, 32), (3, 128, 32), (3, 128, 64)])
def test_layout_is_the_published_one(channels, latent, side, tmp_path):
    torch.manual_seed(0)
    net = AutoEncoder(channels, latent, side).eval()
    widths = (32, 64, 128, 256, 512)[: 4 if side == 32 else 5]
    state = net.state_dict()
    assert [state[f"encoder.{i}.0.weight"].shape[0] for i in range(len(widths))] == list(widths)
    assert [state[f"decoder.{i}.0.weight"].shape[1] for i in range(len(widths) - 1)] == list(widths[-2::-1])
    assert state["latent_layer.weight"].shape == (latent, 4 * widths[-1])
    if (channels, side) == (1, 32):
        assert len(state) == 62 and sum(p.numel() for p in net.parameters()) == 918305
    x = torch.rand(2, channels, side, side) * 2 - 1
    assert net(x).shape == x.shape and net(x).abs().max() <= 1
    save_autoencoder(tmp_path / "a.pth", net)
    read = load_autoencoder(tmp_path / "a.pth")
    assert (read.channels, read.latent, read.side) == (channels, latent, side)
    assert digest(read.state_dict()) == digest(net.state_dict())
    assert torch.equal(read.encode(x, False), net.encode(x, False)) and not read.training


def test_digest_tells_weights_apart():
    torch.manual_seed(0)
    net = AutoEncoder(1, 4)
    before = digest(net.state_dict())
    assert len(before) == 12 and digest(AutoEncoder(1, 4).state_dict()) != before
    with torch.no_grad():
        net.latent_layer.bias[0] += 1e-3
    assert digest(net.state_dict()) != before


def _without(state):
    del state["latent_layer.bias"]


def _surplus(state):
    state["more"] = torch.zeros(1)


def _narrow(state):
    state["decoder.0.0.bias"] = torch.zeros(5)


def _nan(state):
    state["encoder.2.1.running_var"][3] = float("nan")


def _whole_numbers(state):
    state["encoder.0.0.bias"] = torch.zeros(32, dtype=torch.int64)


def _shared(state):
    # Views of one value would outgrow the file; torch.save keeps them so.
    state["decoder_input.weight"] = torch.zeros(1).expand(1024, 4)


def _other(state):
    state.clear()
    state["fc.weight"] = torch.zeros(2, 2)


def _deep(state):
    state["encoder.4.0.weight"] = torch.zeros(1)


def _huge(state):
    state["latent_layer.weight"] = torch.zeros(4096, 1)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without, "lacks latent_layer.bias"),
        (_surplus, "unknown entry more"),
        (_narrow, r"decoder.0.0.bias is \[5\], expected \[128\]"),
        (_nan, "running_var holds values that are not finite"),
        (_whole_numbers, "encoder.0.0.bias holds values .* of another kind"),
        (_shared, "larger than its data"),
        (_other, "not an autoencoder of the published layout"),
        (_deep, "missing"),
        (_huge, "latent=4096: use 1 to 1024"),
    ],
)
def test_a_file_that_is_no_encoder_is_refused(spoil, told, tmp_path):
    state = AutoEncoder(1, 4).state_dict()
    spoil(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=told):
        load_autoencoder(tmp_path / "a.pth")


def test_files_that_are_missing_damaged_or_dangerous_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match="cannot read the weights"):
        load_autoencoder(path)
    with pytest.raises(UserError, match="not a plain file"):
        load_autoencoder(tmp_path)
    save_autoencoder(path, AutoEncoder(1, 4))
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated or not a torch checkpoint"):
        load_autoencoder(path)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_autoencoder(path)
    torch.save(AutoEncoder(1, 4), path)  # the module itself
    with pytest.raises(UserError, match="refusing"):
        load_autoencoder(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="no state dict"):
        load_autoencoder(path)


@pytest.mark.parametrize("arguments", [(2, 64, 32), (1, 0, 32), (1, 2000, 32), (1, 64, 28)])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(UserError):
        AutoEncoder(*arguments)
