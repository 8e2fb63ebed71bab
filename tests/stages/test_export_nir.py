"""--export_nir: the script writes the converted network as a graph, or refuses and writes nothing."""

import pytest

from tests.scripts import NETWORK, SAMPLING, check, script, train_flags

FLAGS = [*NETWORK, *SAMPLING, "--gen_images=0", "--gap_images=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function: norm → the folder of a training with it."""
    made = {}

    def run(norm: str):
        if norm not in made:
            made[norm] = tmp_path_factory.mktemp(norm) / "run"
            check(script("ANN_train.py", *train_flags(made[norm], 1, f"--norm={norm}", "--sample_step=0", *SAMPLING)))
        return made[norm]

    return run


def test_the_script_writes_a_graph_that_nir_reads(runs, tmp_path):
    nir = pytest.importorskip("nir", reason="nir is not installed: pip install nir")
    path = tmp_path / "net.nir"
    command = [
        "SNN_conversion.py",
        "--eval",
        f"--logdir={runs('batch')}",
        *FLAGS,
        f"--export_nir={path}",
        "--nir_time=9",
    ]
    said = check(script(*command))
    graph = nir.read(path, type_check=False)
    assert f"{path}: {len(graph.nodes)} nodes of NIR, the network at t = 9" in said
    assert (graph.metadata["diffusion_time"], graph.metadata["time_steps"]) == (9, 3)
    again = script(*command)
    assert again.returncode == 2 and f"{path} exists" in again.stderr


def test_group_norms_are_refused_by_name_with_their_remedy(runs, tmp_path):
    pytest.importorskip("nir", reason="nir is not installed: pip install nir")
    logdir, path = runs("group"), tmp_path / "net.nir"
    before = sorted(logdir.iterdir())
    done = script("SNN_conversion.py", "--eval", f"--logdir={logdir}", *FLAGS, f"--export_nir={path}", "--nir_time=9")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "downblocks.0.block1.0: group_norm" in done.stderr and "--norm=batch" in done.stderr
    assert not path.exists() and sorted(logdir.iterdir()) == before


@pytest.mark.parametrize("flag", ["--export_nir=net.nir", "--nir_time=9"])
def test_file_and_time_belong_together(tmp_path, flag):
    done = script("SNN_conversion.py", "--eval", f"--logdir={tmp_path}", flag)
    assert done.returncode == 2 and "give both" in done.stderr
