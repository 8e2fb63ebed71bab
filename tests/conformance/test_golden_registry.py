"""No golden file, and no array in one, is left without a test."""

from pathlib import Path

import pytest

from tests.helpers import GOLDEN, golden

HERE = Path(__file__).parent
# golden file (a pattern) → the module that reads it
REGISTRY = {
    "diffusion": "conformance/test_golden_diffusion.py",
    "finetune_full_8px_bit2": "conformance/test_golden_finetune.py",
    "if_neuron": "conformance/test_golden_neuron.py",
    "quant_functions": "quant/test_quant_golden.py",
    "quant_layers": "quant/test_quant_golden.py",
    "snn_*_bit2": "conformance/test_golden_networks.py",
    "snn_*_bit2_spikes": "conformance/test_golden_networks.py",
    "trace_*_full_8px_bit2": "conformance/test_golden_traces.py",
    "train_step_tiny_8px_bit2": "conformance/test_golden_training.py",
    "unet_*_bit2": "conformance/test_golden_networks.py",
    "unet_*_state_part*": "conformance/test_golden_networks.py",
}


def files_of(pattern: str) -> set[str]:
    return {path.stem for path in GOLDEN.glob(f"{pattern}.npz")}


def test_every_golden_file_belongs_to_a_test_module():
    present = {path.stem for path in GOLDEN.glob("*.npz")}
    registered = {pattern: files_of(pattern) for pattern in REGISTRY}
    assert all(registered.values()), "a pattern without a file"
    assert set().union(*registered.values()) == present
    for module in REGISTRY.values():
        assert (HERE.parent / module).is_file()


def test_every_array_was_read_by_a_test(request):
    config = request.config
    whole = {path for path in HERE.glob("test_*.py")} <= {item.path for item in request.session.items}
    if not whole or config.option.keyword or any("::" in arg for arg in config.args) or hasattr(config, "workerinput"):
        pytest.skip("only some of the conformance tests run")
    for pattern, module in REGISTRY.items():
        if module.startswith("conformance/"):  # the others load their own files, and check their completeness
            for name in files_of(pattern):
                assert not golden(name).unread, f"{name}: {sorted(golden(name).unread)[:5]}"


def test_make_test_runs_this_folder_in_one_process():
    """Among several, each sees only what its own tests read, and the check above has nothing to say."""
    recipe = (HERE.parents[1] / "Makefile").read_text(encoding="utf-8").split("\ntest:")[1].split("\n\n")[0]
    shared, alone = [line for line in recipe.splitlines() if "-m pytest" in line]
    assert "-n " in shared and "--ignore tests/conformance" in shared
    assert "-n " not in alone and "tests/conformance" in alone
