"""The content hash names the content and nothing else, and no flipped bit or cut passes unseen."""

import hashlib
import os
import pickle
import random
import shutil
import zipfile

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.seal import DamageError, content_hash, is_damaged
from ann2snn.errors import UserError


def payload() -> dict:
    generator = torch.Generator().manual_seed(3)
    weights = {f"block.{i}.weight": torch.randn(8, 4, 3, 3, generator=generator) for i in range(6)}
    return {
        "kind": "ann",
        "ema_model": weights,
        "net_model": {name: value + 1 for name, value in weights.items()},
        "optim": {"state": {i: {"step": torch.tensor(float(i))} for i in range(3)}, "betas": (0.9, 0.999)},
        "step": 7,
        "config": {"unet": {"ch_mult": (1, 2), "dropout": 0.1, "name": None, "flag": True, "text": "ä\n"}},
    }


def refused(path) -> UserError | None:
    try:
        checkpoint.read(path)
    except UserError as error:
        assert "\n" not in str(error)
        return error


# ---- what the hash depends on ---------------------------------------------------------------------------------------


def test_the_spelling_that_stored_hashes_rely_on():
    tensor = torch.tensor([[1, -2]], dtype=torch.int16)
    text = b"dict 1 2" + b"str 3 'a'" + b"int 2 17" + b"str 3 'b'" + b"list 1 1" + b"tensor 18 torch.int16 [1, 2]"
    expected = hashlib.sha256(text + b"\x01\x00\xfe\xff").hexdigest()
    assert content_hash({"b": [tensor], "a": 17}) == f"sha256:{expected}"


def test_layout_order_and_subclass_do_not_matter():
    first = payload()
    reordered = {key: first[key] for key in reversed(first)}
    weights = first["ema_model"]
    reordered["ema_model"] = torch.nn.Module().state_dict() | {
        name: weights[name].to(memory_format=torch.channels_last) for name in reversed(weights)
    }
    wide = torch.zeros(8, 8)
    assert content_hash(reordered) == content_hash(first)
    assert content_hash({"a": wide[:, ::2]}) == content_hash({"a": torch.nn.Parameter(torch.zeros(8, 4))})
    assert content_hash(first | {"hash": "anything"}) == content_hash(first)


def test_saving_and_reading_leave_the_hash_as_it_is(tmp_path):
    for name in ("a.pt", "another name.pt"):
        checkpoint.save(tmp_path / name, payload())
        read = checkpoint.read(tmp_path / name)
        assert read["hash"] == content_hash(payload()) == content_hash(read)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another name.pt").read_bytes()


def test_different_contents_have_different_hashes():
    zero = torch.zeros(4)
    contents = [1, 1.0, True, "1", b"1", None, 1j, [], (), {}, [1], (1,), {1: 1}, {"1": 1}, [[1], [2]], [[1, 2]]]
    contents += [[1, [2]], "1 int 1 1", ["a", "b"], ["ab"], {"a": "b"}, float("nan"), -0.0, 0.0, torch.float32]
    contents += [zero, -zero, zero.double(), zero.int(), zero.view(2, 2), zero.view(4, 1), torch.tensor(0.0), zero[:0]]
    contents += [torch.tensor([0.0, 0, 0, 1]), torch.tensor([1.0, 0, 0, 0]), zero.bfloat16(), zero.bool(), "tensor"]
    hashes = [content_hash({"x": content}) for content in contents]
    assert len(set(hashes)) == len(contents)
    assert content_hash({"y": 1}) not in hashes


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (torch.eye(2).to_sparse(), TypeError),
        (torch.zeros(2, device="meta"), TypeError),
        (torch.zeros(1).expand(10**12), ValueError),
        (object(), TypeError),
        ({(1, 2): 3}, TypeError),
        ({1, 2}, TypeError),
    ],
    ids=["sparse", "meta", "expanded", "object", "key", "set"],
)
def test_what_has_no_plain_bytes_is_neither_hashed_nor_saved(content, error, tmp_path):
    with pytest.raises(error):
        content_hash({"x": content})
    with pytest.raises(error):
        checkpoint.save(tmp_path / "ckpt.pt", payload() | {"x": content})
    assert os.listdir(tmp_path) == []


def test_a_small_file_cannot_ask_for_endless_hashing(tmp_path):
    bomb = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(ValueError, match="again and again"):
        content_hash({"bomb": bomb}, budget=100_000)
    torch.save(payload() | {"bomb": bomb, "hash": "sha256:0"}, tmp_path / "ckpt.pt")
    assert refused(tmp_path / "ckpt.pt")


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip(path, position: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


def places(path, count: int) -> list[int]:
    """Random positions, half of them outside the tensors: names, sizes, the pickle, the zip's directory."""
    with zipfile.ZipFile(path) as archive:
        tensors = [r for r in archive.infolist() if "/data/" in r.filename]
    inside = {p for r in tensors for p in range(r.header_offset + 64, r.header_offset + 64 + r.file_size)}
    choice = random.Random(5)
    size = os.path.getsize(path)
    outside = [p for p in range(size) if p not in inside]
    return choice.choices(range(size), k=count // 2) + choice.choices(outside, k=count - count // 2)


@pytest.mark.parametrize("sealed", [True, False], ids=["with its hash", "without"])
def test_a_flipped_bit_is_detected_or_harmless_and_called_damage(tmp_path, sealed):
    whole, path = tmp_path / "whole.pt", tmp_path / "ckpt.pt"
    if sealed:
        checkpoint.save(whole, payload())
    else:
        torch.save(payload(), whole)
    expected, detected = content_hash(payload()), 0
    for index, place in enumerate(places(whole, 400)):
        shutil.copyfile(whole, path)
        flip(path, place, index % 8)
        try:
            read = checkpoint.read(path)
        except UserError as error:
            detected += 1
            assert isinstance(error, DamageError) or is_damaged(path), (place, str(error))
        else:
            assert content_hash(read) == expected, place
    assert detected > 200


@pytest.mark.parametrize("sealed", [True, False], ids=["with its hash", "without"])
def test_every_flip_in_a_tensors_entry_of_the_directory(tmp_path, sealed):
    """Attributes and sizes there are what torch and zipfile see differently."""
    path = tmp_path / "ckpt.pt"
    torch.save(payload() | ({"hash": content_hash(payload())} if sealed else {}), path)
    whole, expected = path.read_bytes(), content_hash(payload())
    end = whole.rindex(b"ckpt/data/2")
    for place in range(whole.rindex(b"PK\x01\x02", 0, end), end + len("ckpt/data/2")):
        for bit in range(8):
            path.write_bytes(whole)
            flip(path, place, bit)
            try:
                read = checkpoint.read(path)  # once: what torch leaves unread is whatever the memory held
            except UserError as error:
                assert isinstance(error, DamageError) or is_damaged(path), (place, bit, str(error))
            else:
                assert content_hash(read) == expected, (place, bit)


def test_a_flip_inside_a_tensor_is_seen_although_torch_reads_the_file(tmp_path):
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, payload())
    needle = payload()["ema_model"]["block.2.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(needle) + 100, 0)
    torch.load(path, weights_only=True)
    assert str(refused(path)) == f"refusing {path}: its content does not match its hash: the file is damaged"


def test_cut_and_blank_files_are_damaged_and_foreign_ones_are_not(tmp_path):
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, payload())
    data = path.read_bytes()
    assert not is_damaged(path)
    for sixteenth in range(16):
        for cut in (data[: len(data) * sixteenth // 16], data[: len(data) * sixteenth // 16].ljust(len(data), b"\0")):
            path.write_bytes(cut)
            assert is_damaged(path) and refused(path), sixteenth
    for foreign in (b"hello", pickle.dumps(payload()["config"]), b"\x1f\x8b" + bytes(50), bytes(range(1, 255))):
        path.write_bytes(foreign)
        assert not is_damaged(path) and refused(path)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("readme.txt", "a zip, but not torch's" * 100_000)
        assert not is_damaged(path) and refused(path)
    assert not is_damaged(tmp_path / "nothing") and not is_damaged(tmp_path)
