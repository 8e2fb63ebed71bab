"""Checkpoints come back as the network that was saved; all else is refused in one line, and no code is run."""

import os
import pickle
import zipfile

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork, convert
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from tests.helpers import assert_equal, random_ann, random_batch


def ann_payload(ann: UNet) -> dict:
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    return {"kind": "ann", "format": 1, "net_model": ann.state_dict(), "ema_model": ann.state_dict(), "config": config}


@pytest.fixture
def ann():
    return random_ann(bits=3, weight_bits=4, in_channels=1).float()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt.pt"


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        checkpoint.load(path, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


# ---- round trips ----------------------------------------------------------------------------------------------------


def test_an_ann_comes_back(ann, path):
    checkpoint.save(path, ann_payload(ann) | {"step": 77})
    loaded = checkpoint.load(path)
    assert type(loaded.net) is UNet and not loaded.net.training
    assert (loaded.net.config, loaded.net.diffusion, loaded.step) == (ann.config, ann.diffusion, 77)
    x, t = random_batch(ann)
    with torch.no_grad():
        assert_equal(loaded.net(x.float(), t), ann(x.float(), t))


@pytest.mark.parametrize("spiking", [SpikingConfig(), SpikingConfig("stream", signed=False, settle_steps="auto")])
def test_a_spiking_network_comes_back_and_runs_as_it_was_stored(ann, path, spiking):
    snn = convert(ann, spiking)
    checkpoint.save(path, checkpoint.payload_of(snn, block="tail"))
    loaded = checkpoint.load(path)
    assert isinstance(loaded.net, SpikingNetwork) and loaded.net.spiking == spiking
    assert loaded.raw["block"] == "tail"
    x, t = random_batch(ann)
    with torch.no_grad():
        assert_equal(loaded.net(x.float(), t), snn(x.float(), t))
    override = SpikingConfig("stream", settle_steps=2)
    assert checkpoint.load(path, spiking=override).net.spiking == override


def test_the_hash_names_the_content(ann, path, tmp_path):
    checkpoint.save(path, ann_payload(ann))
    first = checkpoint.load(path).hash
    assert len(first) == 16 and first == checkpoint.load(path).hash
    ann.head.bias.data += 1
    checkpoint.save(path, ann_payload(ann))
    assert checkpoint.load(path).hash != first


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_named(path, tmp_path):
    assert "no checkpoint at" in refusal(path)
    assert "no folder of a network" in refusal(tmp_path)


@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.7, 0.99, "last byte"])
def test_a_truncated_file_is_refused(ann, path, fraction):
    checkpoint.save(path, ann_payload(ann))
    data = path.read_bytes()
    path.write_bytes(data[:-1] if fraction == "last byte" else data[: int(len(data) * fraction)])
    assert "truncated or not a torch checkpoint" in refusal(path)


def test_foreign_files_are_refused(path):
    for content in (
        b"hello",
        b"PK\x03\x04 not really",
        pickle.dumps({"ema_model": 3}, protocol=2)[:20],
        bytes(range(256)) * 8,
    ):
        path.write_bytes(content)
        assert refusal(path).startswith(f"refusing {path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a zip, but not torch's")
    assert "not a torch checkpoint" in refusal(path)
    for payload in ([1, 2], {"model": {}}, torch.zeros(3)):
        torch.save(payload, path)
        assert "none of what can be read" in refusal(path)
    for state, message in (({}, "no weights"), ([1], "no weights"), ({"head.weight": 3}, "entry 'head.weight'")):
        torch.save({"ema_model": state}, path)
        assert message in refusal(path) and "'ema_model'" in refusal(path)
    torch.save({"ema_model": {"conv1.weight": torch.zeros(3)}}, path)
    assert "not those of this U-Net" in refusal(path, bit=2)


class Bomb:
    """Pickles into a call that creates `target`."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(ann, path, tmp_path, legacy):
    target = tmp_path / "executed"
    payload = ann_payload(ann) | {"note": Bomb(target)}
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    assert "could execute code" in refusal(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the file is live: an unprotected load sets it off
    assert target.exists()


def test_code_in_a_bare_pickle_is_not_run(path, tmp_path):
    target = tmp_path / "executed"
    path.write_bytes(pickle.dumps({"ema_model": Bomb(target)}, protocol=2))
    assert refusal(path).startswith(f"refusing {path}")
    assert not target.exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("head.bias"), "lacks head.bias (1 missing, 0 unknown"),
        (lambda s: s.update(surplus=torch.zeros(1)), "unknown entry surplus (0 missing, 1 unknown"),
        (lambda s: s.update({"head.bias": torch.zeros(5)}), "head.bias is [5], expected [8]"),
        (
            lambda s: s["tail.2.weight"].view(-1)[3:4].fill_(float("nan")),
            "tail.2.weight holds values that are not finite",
        ),
        (lambda s: s["tail.1.act_alpha"].fill_(float("inf")), "tail.1.act_alpha holds values that are not finite"),
        (
            lambda s: s.update({"head.bias": torch.zeros(8, dtype=torch.int64)}),
            "entry 'head.bias' of 'ema_model' is not a named floating",
        ),
    ],
    ids=["missing", "extra", "shape", "nan", "inf", "integers"],
)
def test_weights_that_do_not_fit_are_refused_by_name(ann, path, edit, message):
    payload = ann_payload(ann)
    payload["ema_model"] = {name: value.clone() for name, value in payload["ema_model"].items()}
    edit(payload["ema_model"])
    checkpoint.save(path, payload)
    assert message in refusal(path)
    assert type(checkpoint.load(path, weights="net").net) is UNet  # the raw weights are untouched


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("unet"), "configuration is unreadable"),
        (lambda c: c["unet"].update(colour=3), "configuration is unreadable"),
        (lambda c: c["unet"].update(bits=11), "configuration is invalid: --bit=11"),
        (lambda c: c["diffusion"].update(beta_1=-1.0), "configuration is invalid: --beta_1"),
        (lambda c: c["unet"].update(ch=16), "expected"),
    ],
)
def test_a_damaged_configuration_is_refused(ann, path, edit, message):
    payload = ann_payload(ann)
    edit(payload["config"])
    checkpoint.save(path, payload)
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("options", "flag", "stored"),
    [
        ({"bit": 2}, "--bit=2", "made with 3"),
        ({"expected": {"ch_mult": ("ch_mult", [1, 2, 2])}}, "--ch_mult=1,2,2", "made with 1,2"),
        ({"expected": {"diffusion_steps": ("T", 1000)}}, "--T=1000", "made with 20"),
        ({"expected": {"mean_type": ("mean_type", "xstart")}}, "--mean_type=xstart", "made with epsilon"),
    ],
)
def test_a_contradicting_flag_is_refused_with_both_values(ann, path, options, flag, stored):
    checkpoint.save(path, ann_payload(ann))
    message = refusal(path, **options)
    assert flag in message and stored in message
    checkpoint.load(path, bit=3, expected={"ch_mult": ("ch_mult", [1, 2]), "mean_type": ("mean_type", "epsilon")})


def test_weights_that_are_not_in_the_file_are_refused(ann, path):
    checkpoint.save(path, checkpoint.payload_of(convert(ann)))
    assert "no weights under 'net_model'" in refusal(path, weights="net")


# ---- writing --------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_and_no_litter(ann, path, monkeypatch):
    checkpoint.save(path, ann_payload(ann))
    before = path.read_bytes()

    def half_written(payload, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written)
        with pytest.raises(UserError, match="No space left"):
            checkpoint.save(path, ann_payload(ann))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_interruption_while_writing_leaves_the_old_file(ann, path, monkeypatch):
    checkpoint.save(path, ann_payload(ann))
    before = path.read_bytes()

    def interrupted(payload, target):
        target.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, ann_payload(ann))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_an_error_of_one_line(ann, tmp_path):
    with pytest.raises(UserError, match="cannot write") as error:
        checkpoint.save(tmp_path / "nowhere" / "ckpt.pt", ann_payload(ann))
    assert "\n" not in str(error.value)


def test_files_are_as_readable_as_any_other(ann, path):
    checkpoint.save(path, ann_payload(ann))
    plain = path.with_name("plain")
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": "7"},
        {"kind": "something"},
        {"format": 99},
        {"config": {"unet": {"bits": "x"}, "diffusion": {}}},
        {"config": {"unet": {"ch_mult": ["a"]}, "diffusion": {}}},
        {"config": {"unet": {"ch": 8.5}, "diffusion": {}}},
        {"config": {"unet": {"ch": float("nan")}, "diffusion": {}}},
        {"config": {"unet": {"unknown": 1}, "diffusion": {}}},
        {"ema_model": {3: torch.zeros(1)}},
        {"ema_model": {"head.weight": torch.zeros(2, 2).to_sparse()}},
        {"ema_model": {"head.weight": torch.zeros(2, dtype=torch.int64)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_settings_and_entries_are_refused_in_one_line(ann, path, change):
    payload = ann_payload(ann) | {"step": 1}
    torch.save(payload, path)
    checkpoint.load(path)  # as it is, it loads
    torch.save(payload | change, path)
    with pytest.raises(UserError) as refusal:
        checkpoint.load(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_network_and_process_must_have_as_many_diffusion_steps(ann, path):
    payload = ann_payload(ann)
    payload["config"]["diffusion"]["diffusion_steps"] += 1
    torch.save(payload, path)
    assert "in the process" in refusal(path)
