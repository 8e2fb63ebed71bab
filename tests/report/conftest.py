from pathlib import Path

import pytest

from tests.report.run_folder import write_run


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    """A run folder with every input of a report."""
    folder = tmp_path / "my_run"
    write_run(folder)
    return folder
