"""Trained once for all tests of a session."""

import pytest

from tests.scripts import check, script
from tests.stages.direct_runs import training


@pytest.fixture(scope="session")
def direct_runs(tmp_path_factory):
    """{arch: (logdir, standard output)} of SNN_train.py, four steps each. Nobody changes what is in them."""
    folder, found = tmp_path_factory.mktemp("direct"), {}
    for arch in ("sddpm", "fsddim"):
        out = check(script("SNN_train.py", *training(arch, folder / arch, 4, "--sample_step=4")))
        found[arch] = (folder / arch, out)
    return found
