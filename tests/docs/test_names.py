"""What the documentation names exists, and every flag is in it. `python -m tests.docs.test_names` writes flags.md."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("config/**/*.md"))]
#: Flags of torchrun, Slurm and uv or pip that pages show in commands.
OTHERS = {
    "max_restarts", "nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "standalone",
    "cpus", "gpus", "job", "nodes", "ntasks", "open", "requeue", "signal", "time", "flagfile", "help", "index",
}  # fmt: skip


def table() -> str:
    """The flags of all scripts, which share one table, as --help shows them."""
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout[done.stdout.index("\nWhat to do:") :].strip()


def page() -> str:
    return f"""# All flags

Every script takes the whole table ([flagfiles](../config/README.md)); a flag that only some stages read says which.

```text
{table()}
```
"""


def names_of_flags(text: str) -> set[str]:
    """Of the scripts; a yes-or-no flag counts as `noNAME` too."""
    found = set()
    for off, name in re.findall(r"^  --(\[no\])?(\w+)", text, re.M):
        found |= {name, f"no{name}"} if off else {name}
    return found


def names_of_options() -> set[str]:
    """Of the `python -m` programs."""
    sources = [*ROOT.glob("ann2snn/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    return {name for path in sources for name in re.findall(r'\badd(?:_argument)?\(\s*"--(\w+)', path.read_text())}


def exists(dotted: str) -> bool:
    """Whether a module of that name can be imported, or an attribute reached from one."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 1):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[: index + 1]))
            except ImportError:
                return False
    return True


def test_the_page_of_flags_is_the_table():
    assert (ROOT / "docs/flags.md").read_text(encoding="utf-8") == page(), "python -m tests.docs.test_names"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_and_names_in_the_documentation_exist(path):
    text = path.read_text(encoding="utf-8")
    known = names_of_flags((ROOT / "docs/flags.md").read_text(encoding="utf-8")) | names_of_options() | OTHERS
    used = {name for name in re.findall(r"(?<![\w-])--([a-z]\w*)", text) if not name.endswith("_")}  # --fad_*
    assert used <= known, f"no such flags: {sorted(used - known)}"
    named = set(re.findall(r"(?<![\w./-])(?:ann2snn|benchmarks|quant)(?:\.[A-Za-z_]\w*)+", text))
    files = re.compile(r"\.(py|md|txt|json)$")
    assert not [name for name in sorted(named) if not files.search(name) and not exists(name)]


def test_the_search_finds_what_does_not_exist():
    assert exists("ann2snn.convert") and exists("ann2snn.run.lines.read_log") and exists("benchmarks.faults")
    assert not exists("ann2snn.nothing") and not exists("ann2snn.run.log.nothing")
    assert names_of_flags("  --[no]a: b\n  --c: d\n      --e") == {"a", "noa", "c"}


def test_the_tests_that_pages_name_are_there():
    there = {str(path.relative_to(ROOT / "tests").with_suffix("")) for path in ROOT.glob("tests/**/test_*.py")}
    there |= {name.rpartition("/")[2] for name in there}
    named = {
        name for path in PAGES for name in re.findall(r"\b(?:tests/)?((?:[a-z]+/)*test_\w+)", path.read_text("utf-8"))
    }
    assert len(named) > 20 and named <= there, f"no such tests: {sorted(named - there)}"


if __name__ == "__main__":
    (ROOT / "docs/flags.md").write_text(page(), encoding="utf-8")
