"""What the pickle inside a checkpoint would build, followed on its opcodes before torch builds it.

`torch.load(weights_only=True)` calls nothing outside its own list, but some of that list allocates whatever a file
asks for (`bytearray(10**11)` takes thirty bytes), older versions believe the announced length of a tensor without
looking at the record behind it, and a dictionary key of nested tuples can take for ever to hash. Here each opcode is
disassembled (`pickletools`, which runs nothing) and followed with stand-ins; all a checkpoint needs is dictionaries,
lists and tuples of plain values and dense tensors, and everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_OPCODES = 2_000_000
CALLS = {
    "collections OrderedDict", "torch Size",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
}  # fmt: skip
#: Storage type → bytes of an element.
STORAGES = {
    **{f"torch {name}Storage": 1 for name in ("Byte", "Char", "Bool")},
    **{f"torch {name}Storage": 2 for name in ("Half", "BFloat16", "Short")},
    **{f"torch {name}Storage": 4 for name in ("Float", "Int")},
    **{f"torch {name}Storage": 8 for name in ("Double", "Long")},
}
ATOMS = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
DANGEROUS = "it holds objects other than tensors and plain values, which could execute code"


class _Global(NamedTuple):
    name: str


class _Built:
    """Stands for a dictionary, list, tensor or storage."""


_BUILT = _Built()


def follow(program: bytes, records: Mapping[str, int]) -> None:
    """Follow a pickle of protocol 2, as torch writes them.

    records: name of each tensor record, such as "data/0" → its bytes.

    Raises:
        ValueError: it would build anything but plain values and dense tensors, or tensors larger than their records.
            The text is one clause.
    """
    machine = _Machine(records)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count > MOST_OPCODES:
                raise ValueError("it is too intricate for a checkpoint")
            machine.step(opcode.name, argument)
    except _Refusal:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("it is truncated or not a torch checkpoint") from None


class _Refusal(ValueError):  # noqa: N818
    """Has a text for people, unlike what the disassembler raises."""


class _Machine:
    """The unpickler's stack with stand-ins: atoms and tuples as they are, all else as `_BUILT`."""

    def __init__(self, records: Mapping[str, int]) -> None:
        self.records = records
        self.stack: list = []
        self.outer: list[list] = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: Any) -> None:
        """argument: as the disassembler reads it.

        Raises _Refusal, or IndexError, KeyError or TypeError where the stack does not fit.
        """
        if name in ATOMS:
            self.stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append(_BUILT)
        elif name == "EMPTY_TUPLE":
            self.stack.append(())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif name == "TUPLE":
            items = self._to_mark()
            self.stack.append(tuple(items))
        elif name in TUPLES:
            self.stack.append(tuple(self._pop(TUPLES[name])))
        elif name in ("APPENDS", "SETITEMS", "APPEND", "SETITEM"):
            self._fill(name)
        elif name == "GLOBAL":
            self._name(argument)
        elif name == "REDUCE":
            self._call(*self._pop(2))
        elif name == "BUILD":
            self._pop(1)
        elif name == "BINPERSID":
            self._storage(*self.stack.pop())
        elif name not in ("PROTO", "STOP"):
            raise _Refusal(DANGEROUS)

    def _pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise IndexError
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _to_mark(self) -> list:
        inner, self.stack = self.stack, self.outer.pop()
        return inner

    def _fill(self, name: str) -> None:
        """Put items into the list or dictionary below them. Keys must be atoms: anything else may not end hashing."""
        items = self._to_mark() if name.endswith("S") else self._pop(1 if name == "APPEND" else 2)
        keys = items[::2] if name.startswith("SETITEM") else []
        if any(isinstance(key, (tuple, _Built, _Global)) for key in keys):
            raise _Refusal("it has keys that are neither names nor numbers")
        if self.stack[-1] is not _BUILT:
            raise TypeError

    def _name(self, name: str) -> None:
        if name not in CALLS and name not in STORAGES:
            raise _Refusal(DANGEROUS)
        self.stack.append(_Global(name))

    def _call(self, function: object, arguments: object) -> None:
        if not isinstance(function, _Global) or function.name not in CALLS:
            raise _Refusal(DANGEROUS)
        if function.name.endswith("OrderedDict") and arguments != ():
            raise _Refusal("it has keys that are neither names nor numbers")
        self.stack.append(_BUILT)

    def _storage(self, word: str, kind: _Global, key: str, location: str, elements: int) -> None:
        size = self.records.get(f"data/{key}")
        if word != "storage" or kind.name not in STORAGES or not isinstance(location, str):
            raise _Refusal(DANGEROUS)
        if size is None or type(elements) is not int or elements * STORAGES[kind.name] != size:
            raise _Refusal("a tensor is announced with another size than is stored")
        self.stack.append(_BUILT)
