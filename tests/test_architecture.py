"""The layers import downwards only, and files and functions stay readable."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["ANN_train.py", "SNN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"]
SOURCES = [*sorted(ROOT.glob("ann2snn/**/*.py")), *sorted(ROOT.glob("quant/*.py")), *(ROOT / s for s in SCRIPTS)]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Higher layers may import lower ones and their own; `errors` and `config` are for everybody above quant and kernels.
LAYERS = [
    {"stages", "build", "api", "flags", "settings", "launch", "toy", "fad"},
    {"sampling", "compiled", "probe", "finetune", "metrics", "cost", "io", "report", "runtime", "world"},
    {"convert"},
    {"nets", "neurons", "diffusion", "data"},
    {"config", "errors", "files", "output", "signals"},
    {"kernels", "quant"},
]
LEVEL = {name: len(LAYERS) - i for i, layer in enumerate(LAYERS) for name in layer}
# The published conversion formula needs no other layer; saying so keeps these two usable on their own.
STANDALONE = {"quant": {"torch", "quant"}, "kernels": {"torch", "triton"}}


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if node.level and not node.module else {module}
    return found


def layer_of(dotted: str) -> str | None:
    """The project layer a dotted name belongs to, None for everything else."""
    parts = dotted.split(".")
    if parts[0] == "quant":
        return "quant"
    return parts[1] if parts[0] == "ann2snn" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards_only(path):
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None or own == "__init__":
        return
    for name in imports(path):
        target = layer_of(name)
        if target is not None and target != own:
            assert LEVEL[target] <= LEVEL[own], f"{path.name} ({own}) imports {name}"


@pytest.mark.parametrize("name", STANDALONE)
def test_quantizers_know_torch_alone_and_kernels_triton_too(name):
    folder = ROOT / name if name == "quant" else ROOT / "ann2snn" / name
    standard = set(__import__("sys").stdlib_module_names)
    for path in folder.glob("*.py"):
        roots = {dotted.split(".")[0] for dotted in imports(path)} - standard
        assert roots <= STANDALONE[name] | {"ann2snn" if name == "kernels" else "quant"}, path
        if name == "kernels":
            assert all(layer_of(dotted) in (None, "kernels") for dotted in imports(path)), path


def test_only_scripts_build_and_flags_know_absl():
    knowing = {p.relative_to(ROOT).as_posix() for p in SOURCES if any(i.split(".")[0] == "absl" for i in imports(p))}
    assert knowing == {"ann2snn/flags.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_fit_a_screen_and_say_how_to_run_them(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count("\n") <= 90
    assert f"python {name} --flagfile" in ast.get_docstring(ast.parse(text))
