"""No checkpoint from outside runs code, takes memory or time beyond its size, or ends in more than one clear line."""

import os
import pickle
import time

import pytest
import torch

from ann2snn.checkpoints import bounds, checkpoint, opcodes
from ann2snn.errors import UserError
from ann2snn.files.zipped import members
from tests.hostile.contained import contained, refusal, sixteenths, tree
from tests.hostile.corpus import CHECKPOINTS, ESCAPE, payload, repacked, save_valid, special_files
from tests.scripts import SAMPLING, script


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt.pt"


#: What the refusal says where it matters which check it was: a later one would have come after the harm.
WORDS = {
    **dict.fromkeys(("memory by bytearray", "memory by storage", "memory by tensor", "sparse"), "could execute code"),
    **dict.fromkeys(("command", "command in a legacy file", "command in a bare pickle"), "could execute code"),
    **dict.fromkeys(("expanded", "expanded elsewhere"), "larger than its data"),
    **dict.fromkeys(("billion laughs", "billion laughs as step", "deep"), "too large or too deep"),
    **dict.fromkeys(("packed", "bomb"), "packed"),
    "storage of another size": "another size than is stored", "one tensor for all": "share their data",
    "torchscript": "TorchScript", "tar": "torch before 1.6",
    "billion laughs as name": "neither names nor numbers", "path as stage": "no plain word",
    "table as setting": "no table of plain values", "tensor as setting": "no table of plain values",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_malicious_checkpoint_is_refused_in_one_line_without_memory_or_time(name, tmp_path, path):
    marker = tmp_path / "executed"
    CHECKPOINTS[name](path, marker)
    before = tree(tmp_path)
    started = time.monotonic()
    bit = None if name == "huge SDDPM" else 2  # spiking networks have no bits
    message = contained(lambda: checkpoint.load(path, bit=bit))
    assert message is not None and str(path) in message and WORDS.get(name, "refusing") in message, message
    assert time.monotonic() - started < 5
    assert not marker.exists() and tree(tmp_path) == before


@pytest.mark.parametrize("name", ["command", "command in a legacy file", "command in a bare pickle"])
def test_the_commands_in_the_corpus_are_live(name, tmp_path, path):
    marker = tmp_path / "executed"
    CHECKPOINTS[name](path, marker)
    if name == "command in a bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two tables", "end record is ambiguous"),
        ("endless table", "damaged or too large"),
        ("overlapping", "overlap"),
        ("one name twice", "two of one name"),
        ("names in capitals", "two of one name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_readers_may_disagree_on_is_refused(name, words, tmp_path, path):
    CHECKPOINTS[name](path, tmp_path / "executed")
    with open(path, "rb") as file, pytest.raises(ValueError, match=words):
        members(file)


def test_bytes_before_or_after_a_zip_make_it_ambiguous(path):
    data = save_valid(path).read_bytes()
    for changed in (b"x" + data, data + b"x", data + data[-22:]):
        path.write_bytes(changed)
        with open(path, "rb") as file, pytest.raises(ValueError):
            members(file)


def test_memory_is_what_torch_itself_would_have_taken(path):
    """The bombs are live: without the check, torch's own protected load allocates what the file asks for."""
    CHECKPOINTS["memory by bytearray"](path, None)
    with pytest.raises(AssertionError, match="MemoryError"):
        contained(lambda: torch.load(path, weights_only=True))


def test_a_small_file_of_a_huge_network_is_refused_at_once(path):
    CHECKPOINTS["huge network"](path, None)
    started = time.monotonic()
    message = contained(lambda: checkpoint.load(path), memory=1 << 28)
    assert "expected" in message or "lacks" in message
    assert time.monotonic() - started < 10


def test_a_truncated_checkpoint_is_refused_at_every_sixteenth(path):
    for part in sixteenths(save_valid(path).read_bytes()):
        path.write_bytes(part)
        assert "truncated or not a torch checkpoint" in refusal(lambda: checkpoint.load(path))


def test_what_is_no_plain_file_is_refused(tmp_path):
    for what, special in special_files(tmp_path / "special", ".pt").items():
        message = contained(lambda special=special: checkpoint.load(special), seconds=5)
        assert message and str(special) in message, what


def test_names_from_a_file_reach_no_terminal_raw(path):
    torch.save(payload(ema_model=payload()["ema_model"] | {ESCAPE: torch.zeros(1)}), path)
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert "\\x1b[2J fake" in str(error.value)


def test_valid_content_passes_the_checks(path):
    """Shared dictionaries and tensors, views, channels-last tensors, parameters, an optimizer's state, no elements."""
    net = torch.nn.Conv2d(4, 4, 3)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 4, 8, 8)).sum().backward()
    optimizer.step()
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    extra = {"optim": optimizer.state_dict(), "x_T": images, "empty": torch.zeros(0, 3), "view": images[1:]}
    extra |= {"parameter": net.weight, "shape": torch.Size([1, 2]), "flags": [True, None, 1.5, "é", -(2**40)]}
    torch.save(payload(**extra), path)
    read = checkpoint.read(path)
    assert torch.equal(read["x_T"], images) and read["shape"] == (1, 2) and read["flags"] == extra["flags"]
    assert torch.equal(read["parameter"], net.weight) and not read["parameter"].requires_grad
    moments = read["optim"]["state"][0]["exp_avg"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])
    for name, value in payload()["ema_model"].items():
        assert torch.equal(read["ema_model"][name], value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool])
def test_every_kind_of_tensor_that_a_checkpoint_may_hold_passes_as_it_is(kind, path):
    value = torch.arange(6).to(kind)
    torch.save(payload(extra=value), path)
    assert torch.equal(checkpoint.read(path)["extra"], value)


def test_following_a_pickle_finds_every_name_it_would_look_up():
    for harmful in (b"cos\nsystem\n.", b"cbuiltins\neval\n.", b"c__builtin__\nset\n.", b"ctorch\nload\n."):
        with pytest.raises(ValueError, match="could execute code"):
            opcodes.follow(b"\x80\x02" + harmful, {})
    for other in (b"\x80\x02i", b"\x80\x04\x95", b"\x80\x02", b"", b"0.", b"\x80\x02h\x07.", b"\x80\x02t."):
        with pytest.raises(ValueError):
            opcodes.follow(other, {})


def test_a_member_may_be_added_but_not_doubled(path):
    assert checkpoint.load(repacked(save_valid(path), lambda _, data: data, ("archive/note", b"x"))).step == 3


def test_plain_copies_bound_what_they_walk():
    assert bounds.plain({"a": [1, (2.0, None)], 3: {"b": "c"}}) == {"a": [1, (2.0, None)], 3: {"b": "c"}}
    for value in (object(), b"bytes", 1j, {1, 2}, {(1,): 2}, {None: 1}, 2**63, torch.nn.ReLU):
        with pytest.raises(ValueError):
            bounds.plain({"a": value})


def test_scripts_refuse_a_malicious_checkpoint_and_write_nothing(tmp_path):
    marker, logdir = tmp_path / "executed", tmp_path / "run"
    logdir.mkdir()
    (logdir / "converted_snn.pt").write_bytes(b"an earlier result")
    for case in ("command", "huge network", "path as stage", "terminal commands"):
        CHECKPOINTS[case](logdir / "ckpt.pt", marker)
        before = tree(tmp_path)
        for name, action in (("SNN_conversion.py", "--eval"), ("SNN_ft.py", "--fine_tune")):
            done = script(name, action, f"--logdir={logdir}", *SAMPLING)
            assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr[-1000:]
            assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
        assert tree(tmp_path) == before and not marker.exists()
    os.remove(logdir / "ckpt.pt")
