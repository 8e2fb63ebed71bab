"""docs/models.md: its Python block prints what the page says, and its commands run."""

import re
import shlex
from pathlib import Path

import pytest

import ann2snn
from tests.scripts import check, script

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
QUICK = ("--num_threads=1", "--device=cpu")


@pytest.mark.slow  # tests/stages/test_init_from.py is quick
def test_the_page_runs_as_written(tmp_path, monkeypatch, capsys):
    code, printed = ("".join(re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)) for kind in ("python", "text"))
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        exec(compile(code, "docs/models.md", "exec"), {})
    assert capsys.readouterr().out == printed
    commands = [shlex.split(line) for line in re.findall(r"^    python (?!-m benchmarks)(.*)$", PAGE, re.MULTILINE)]
    assert commands
    for name, *flags in commands:
        flags = [flag.replace("logs/models", f"{tmp_path}/logs/models") for flag in flags]
        check(script(name, *flags, *QUICK))
    assert ann2snn.load(tmp_path / "logs/models/theirs").in_channels == 1
