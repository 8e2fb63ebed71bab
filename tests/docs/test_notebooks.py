"""docs/notebooks: their cells run, one after the other, and print what the files keep of them."""

import json

import pytest
import torch

from tests.docs.test_own_network import PAGE, assert_printed

NOTEBOOKS = sorted((PAGE.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture
def undisturbed():
    """Cells set the number of threads and the random state; neither outlives them."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


def _cases() -> list:
    """Those that take more than some seconds are run by CI's own step, and by `make test-long`."""
    long = {"convert-my-network", "what-spikes-cost"}
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in long)) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", _cases())
@pytest.mark.slow
def test_every_cell_runs_and_prints_what_is_kept(path, undisturbed, capsys, monkeypatch):
    plots = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    plots.switch_backend("agg")
    monkeypatch.chdir(path.parent)
    space: dict = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), space)
            kept = "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")
            assert_printed(capsys.readouterr().out, kept, number)
    plots.close("all")
