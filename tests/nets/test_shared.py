"""save_pretrained, from_pretrained, push_to_hub: the folders of `save` and `load`, by the field's names."""

import os
import sys
import types

import pytest
import torch

import ann2snn
from ann2snn.convert import SpikingNetwork
from ann2snn.nets import UNet
from tests.helpers import assert_equal


def network() -> UNet:
    torch.manual_seed(0)
    return ann2snn.build_unet(ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4, image_size=4, bit=2).eval()


@pytest.mark.parametrize("kind", [UNet, SpikingNetwork])
def test_a_network_comes_back_bitwise_and_the_folder_is_that_of_save(tmp_path, kind):
    net = network() if kind is UNet else ann2snn.convert(network(), schedule="stream", settle_steps=3)
    net.save_pretrained(tmp_path / "net")
    ann2snn.save(net, tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "net" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    again = kind.from_pretrained(tmp_path / "net")
    assert type(again) is kind and again.config == net.config
    for name, value in net.state_dict().items():
        assert_equal(again.state_dict()[name], value)
    if kind is SpikingNetwork:
        assert again.spiking == net.spiking
    with pytest.raises(ann2snn.UserError, match="nothing is overwritten"):
        net.save_pretrained(tmp_path / "net")


def test_a_snapshot_of_the_hub_which_is_links_is_read(tmp_path):
    network().save_pretrained(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        os.symlink(os.path.relpath(path, tmp_path / "snapshot"), tmp_path / "snapshot" / path.name)
    assert isinstance(UNet.from_pretrained(tmp_path / "snapshot"), UNet)


def test_other_classes_missing_folders_files_and_foreign_networks_are_refused(tmp_path):
    ann2snn.convert(network()).save_pretrained(tmp_path / "snn")
    with pytest.raises(
        ann2snn.UserError, match=r"holds a SpikingNetwork, no UNet: use SpikingNetwork\.from_pretrained"
    ):
        UNet.from_pretrained(tmp_path / "snn")
    with pytest.raises(ann2snn.UserError, match="snapshot_download"):
        UNet.from_pretrained("somebody/network")
    with pytest.raises(ann2snn.UserError, match="give a folder"):
        network().save_pretrained(tmp_path / "net.pt")
    foreign = torch.nn.Sequential(torch.nn.Linear(2, 2), ann2snn.quant.QuantReLU(2), torch.nn.Linear(2, 2)).eval()
    with pytest.raises(ann2snn.UserError, match="cannot be saved with its settings"):
        ann2snn.convert(foreign).save_pretrained(tmp_path / "foreign")
    assert [path.name for path in tmp_path.iterdir()] == ["snn"]


class Hub(types.ModuleType):
    """What `push_to_hub` asks huggingface_hub for; keeps what is uploaded."""

    def __init__(self, token=None, error=None):
        super().__init__("huggingface_hub")
        self.__spec__ = types.SimpleNamespace()
        self.token, self.error, self.pushed = token, error, {}
        self.HfApi = lambda token: self

    def get_token(self):
        return self.token

    def create_repo(self, repo_id, private, exist_ok):
        if self.error:
            raise self.error

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.pushed = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return types.SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


def test_pushing_uploads_the_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub := Hub("secret"))
    net = network()
    assert net.push_to_hub("me/net") == "https://huggingface.co/me/net/commit/1"
    net.save_pretrained(tmp_path / "net")
    assert hub.pushed == {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}


def test_pushing_without_package_or_token_or_where_the_hub_refuses_says_so_in_one_line(monkeypatch):
    net = network()
    for hub, said in (
        (Hub(), "wants a token"),
        (Hub("secret", OSError("401 Client Error\nno such user")), "cannot push to me/net: 401 Client Error"),
    ):
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        with pytest.raises(ann2snn.UserError, match=said) as error:
            net.push_to_hub("me/net")
        assert "\n" not in str(error.value)
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ann2snn.UserError, match="pip install huggingface_hub"):
        net.push_to_hub("me/net")
