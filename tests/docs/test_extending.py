"""docs/extending.md: its blocks run as written, one after the other, and print what the page says."""

import contextlib
import io
from pathlib import Path
from unittest import mock

from ann2snn.config import PROCESSES, SAMPLERS
from ann2snn.run import log
from tests.docs.test_own_network import blocks

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@mock.patch.dict(PROCESSES)
@mock.patch.dict(SAMPLERS)
def test_blocks_run_and_print_what_the_page_says(monkeypatch):
    monkeypatch.setattr(log, "TRACKERS", dict(log.TRACKERS))  # to which the page adds one, as to these tables
    names: dict[str, object] = {"__name__": "page"}
    for code, line, printed in blocks(PAGE):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), names)
        assert printed is None or out.getvalue() == printed, f"block at line {line}"
