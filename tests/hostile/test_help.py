"""`--help` shows every flag once, and a mistyped flag is answered with the one that was meant."""

import re

import pytest

from ann2snn import config
from ann2snn.cli import flags
from tests.scripts import script
from tests.test_architecture import SCRIPTS


@pytest.fixture
def table():
    """Our own flags, defined for this test alone."""
    before = set(flags.FLAGS)
    flags.define()
    own = sorted(set(flags.FLAGS) - before)
    yield own
    for name in own:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def test_every_flag_stands_in_the_help_once_with_a_text_and_under_a_title(table):
    text = flags.help_text("")
    shown = re.findall(r"^  --(?:\[no\])?(\w+):\s+\S", text, re.MULTILINE)
    assert sorted(shown) == table
    assert re.findall(r"^(\w.*):$", text, re.MULTILINE) == list(flags.GROUPS)
    assert all(flags.HELP[title] for title in flags.GROUPS)
    assert "(default )" not in text and all(name in text.split() for name in config.SAMPLER_NAMES[1:-1]), "none is cut"


def test_a_mistyped_flag_suggests_one_that_is_near(table):
    suggested = 0
    for name in table:
        for typo in {name[:-1], name.replace("_", ""), name[1:] + name[0]} - set(flags.FLAGS):
            if len(typo) > 4:
                error = flags.flags.UnrecognizedFlagError(typo)
                suggested += f"did you mean --{name}?" in flags._message(error)
    assert suggested > 1.5 * len(table)


def test_every_script_shows_the_same_table():
    shown = set()
    for name in SCRIPTS:
        done = script(name, "--help")
        assert done.returncode == 0 and done.stderr == ""
        shown.add(done.stdout[done.stdout.index("--flagfile=FILE reads") :])
    assert len(shown) == 1
