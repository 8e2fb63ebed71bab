"""How flags are declared and read, on absl's flags: what the table of them is made with."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from absl import flags

from .. import config
from ..files.flagfile import check_arguments, expanded


class Table(flags.FlagValues):
    """The flags of this program alone: absl's own (profilers, debuggers, --only_check_args) are unknown to it.

    by_hand: names of those on the command line itself, which flagfiles have not.
    """

    by_hand: set[str]

    def read_flags_from_files(self, argv: Sequence[str], force_gnu: bool = True) -> list[str]:
        """The arguments with those of flagfiles in the flagfile's place. A list that several of these sources give is
        the last one's: where absl's flags are repeated, their values would add up across sources."""
        check_arguments(argv)
        given: list[tuple[int, str, list[str]]] = []
        value_of = ""
        for source, argument in expanded(argv):
            if value_of:
                given[-1][2].append(argument)
                value_of = ""
                continue
            dashed = argument.startswith("-")
            name, equals, _ = argument[1 + argument.startswith("--") :].partition("=") if dashed else ("", "", "")
            if name == "undefok":  # absl's way of letting any misspelled flag pass
                raise flags.UnrecognizedFlagError(name)
            given.append((source, name, [argument]))
            if name in self and not equals and not self[name].boolean:
                value_of = name
        self.__dict__["by_hand"] = {name for source, name, _ in given if not source}
        lists = {name: source for source, name, _ in given if name in self and isinstance(self[name], flags.MultiFlag)}
        return [word for source, name, words in given if lists.get(name, source) == source for word in words]


FLAGS = Table()
(
    DEFINE_bool,
    DEFINE_integer,
    DEFINE_float,
    DEFINE_string,
    DEFINE_enum,
    DEFINE_list,
    DEFINE_multi_integer,
    DEFINE_alias,
) = (
    functools.partial(define, flag_values=FLAGS)
    for define in (
        flags.DEFINE_bool, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_string, flags.DEFINE_enum,
        flags.DEFINE_list, flags.DEFINE_multi_integer, flags.DEFINE_alias,
    )
)  # fmt: skip


class _SizeParser(flags.ArgumentParser):
    def parse(self, argument: str) -> config.ImageSize:
        return config.read_size(str(argument))


def define_size(name: str, default: str, description: str) -> None:
    """A flag that is one number, or a height and a width."""
    flags.DEFINE(_SizeParser(), name, default, description, FLAGS, flags.ArgumentSerializer())
