"""Threads sleep while they wait for each other, so that they leave a busy machine to those they wait for."""

import os
import subprocess
import sys

import pytest

from tests.scripts import ROOT


@pytest.mark.parametrize(("asked", "spins"), [({}, "0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_openmp_waits_passively_unless_told_otherwise(asked, spins):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env |= asked | {"OMP_DISPLAY_ENV": "verbose"}
    ran = subprocess.run([sys.executable, "-c", "import ann2snn"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = [line.split("'")[1] for line in ran.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not told:
        pytest.skip("no GNU OpenMP in this torch")
    assert (told[0] == spins) if spins else (told[0] != "0")
