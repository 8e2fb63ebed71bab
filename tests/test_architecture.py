"""The rooms import downwards only, modules know no circles, and files and functions stay readable."""

import ast
import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ann2snn.commands.table import COMMANDS

ROOT = Path(__file__).parents[1]
SCRIPTS = ["ANN_train.py", "SNN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"]
SOURCES = [*sorted(ROOT.glob("ann2snn/**/*.py")), *(ROOT / s for s in SCRIPTS)]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# The floors of the house, from the top. A room (a package, or a file beside them) imports its own and rooms of lower
# floors; rooms that share a floor do not know each other. A new import that runs upwards or sideways moves a room, or
# is a mistake.
FLOORS = [
    {"commands"},
    {"cli", "fad"},
    {"stages"},
    {"toy", "training"},
    {"api", "finetune", "report", "scores"},
    {"generate", "metrics"},
    {"latent"},
    {"checkpoints", "cost", "exchange", "hardware", "run"},
    {"convert"},
    {"diffusion", "ptq"},
    {"nets"},
    {"arguments", "data", "neurons"},
    {"config", "distributed", "files"},
    {"errors", "installed", "kernels", "output", "quant", "signals"},
]
FLOOR = {room: len(FLOORS) - i for i, floor in enumerate(FLOORS) for room in floor}
# The published conversion formula needs no other layer; saying so keeps these two usable on their own.
STANDALONE = {"quant": {"torch"}, "kernels": {"torch", "triton"}}


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
    """The project's room a dotted name belongs to, None for everything else."""
    parts = dotted.split(".")
    if parts[0] != "ann2snn" or len(parts) == 1 or parts[1] == "__version__":
        return None
    return parts[1]


def may_import(own: str, target: str) -> bool:
    return target == own or FLOOR[target] < FLOOR[own]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards_only(path):
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own in (None, "__init__", "__main__"):
        return
    for name in imports(path):
        target = layer_of(name)
        assert target is None or may_import(own, target), f"{path.name} ({own}) imports {name}"


def test_every_room_has_one_floor_and_the_order_forbids_what_it_should():
    rooms = {path.stem for path in (ROOT / "ann2snn").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert FLOOR.keys() == rooms - {"__init__", "__main__"}
    assert sum(map(len, FLOORS)) == len(FLOOR)
    for own, target in (
        ("distributed", "report"),
        ("distributed", "files"),
        ("config", "distributed"),
        ("checkpoints", "stages"),
    ):
        assert not may_import(own, target)


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
    if path.parent != ROOT
}


def modules_imported(name: str) -> set[str]:
    """Modules and packages of the project that a module imports, by their dotted names."""
    path, found = MODULES[name], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of two or more nodes that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            fresh = graph[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        reached[start] = seen
    groups = {frozenset({b for b in reached[a] if a in reached[b]} | {a}) for a in graph}
    return [set(group) for group in groups if len(group) > 1]


def test_no_circles_between_modules():
    found = circles({name: modules_imported(name) for name in MODULES})
    assert not found


def test_the_search_for_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert modules_imported("ann2snn.stages.train") >= {"ann2snn.training.best", "ann2snn.checkpoints.checkpoint"}


@pytest.mark.parametrize("name", STANDALONE)
def test_quantizers_know_torch_alone_and_kernels_triton_too(name):
    standard = set(__import__("sys").stdlib_module_names)
    for path in (ROOT / "ann2snn" / name).glob("*.py"):
        roots = {dotted.split(".")[0] for dotted in imports(path)} - standard
        assert roots <= STANDALONE[name] | {"ann2snn"}, path
        assert all(layer_of(dotted) in (None, name) for dotted in imports(path)), path


def test_the_short_name_of_the_quantizers_is_no_second_copy():
    from quant.weight import QuantConv2d

    import ann2snn.quant
    import quant

    assert QuantConv2d is ann2snn.quant.weight.QuantConv2d is quant.QuantConv2d
    assert set(quant.__all__) == set(ann2snn.quant.__all__) and all(hasattr(quant, name) for name in quant.__all__)
    for path in sorted((ROOT / "ann2snn/quant").glob("[a-z]*.py")):
        module = importlib.import_module(f"quant.{path.stem}")
        assert module is importlib.import_module(f"ann2snn.quant.{path.stem}") is getattr(quant, path.stem)


def test_the_installed_package_does_not_need_the_short_name():
    """Which it does not bring."""
    assert not [path for path in SOURCES for name in imports(path) if name.split(".")[0] == "quant"]


def test_pickles_that_say_quant_are_read():
    """Made before the quantizers moved: whole modules name their class's place."""
    import quant

    layer = pickle.loads(b"\x80\x04cquant.activation\nQuantReLU\n.")
    assert layer is quant.QuantReLU


def test_only_the_flags_know_absl():
    knowing = {p.relative_to(ROOT).as_posix() for p in SOURCES if any(i.split(".")[0] == "absl" for i in imports(p))}
    assert knowing == {"ann2snn/cli/flags.py", "ann2snn/cli/parsing.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_every_file_is_linted():
    """A folder left out by its name alone once hid others of that name."""
    listed = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen = {Path(line) for line in listed.stdout.splitlines()}
    folders = ("ann2snn", "quant", "tests", "benchmarks")
    assert {path for folder in folders for path in (ROOT / folder).glob("**/*.py")} - seen == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_hand_on_to_commands_that_fit_a_screen_and_say_how_to_run_them(name):
    script = (ROOT / name).read_text(encoding="utf-8")
    (module,) = re.findall(r"^from ann2snn.commands import (\w+)$", script, re.M)
    text = (ROOT / f"ann2snn/commands/{module}.py").read_text(encoding="utf-8")
    assert script.count("\n") <= 8 and text.count("\n") <= 90
    assert f"python {name} --flagfile" in ast.get_docstring(ast.parse(text))
    assert [known.module for known in COMMANDS.values() if known.script == name] == [f"commands.{module}"]
