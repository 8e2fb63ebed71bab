import pytest
import torch
from pytorch_fid import inception as fid


def _pytorch_fid_net(state, monkeypatch):
    """pytorch-fid's own network with `state` in place of a download; its random initial weights if state is None."""
    monkeypatch.setattr(fid, "load_state_dict_from_url", lambda *args, **kwargs: state)
    if state is None:
        from torchvision.models import Inception3

        monkeypatch.setattr(Inception3, "load_state_dict", lambda *args, **kwargs: None)
    return fid.fid_inception_v3()


@pytest.fixture(scope="session")
def random_inception():
    """State dict with the FID Inception's keys and shapes, and statistics that keep activations alive in depth."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        net = _pytorch_fid_net(None, monkeypatch)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(2.0, 3.2)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    net.fc.bias.data.normal_(0, 1)
    return net.state_dict()


@pytest.fixture(scope="session")
def random_inception_file(random_inception, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_inception, path)
    return path
