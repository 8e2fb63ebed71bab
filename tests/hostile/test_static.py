"""What the sources must not contain: nothing from a file is evaluated, unpickled, or handed to a shell."""

import ast

import pytest

from tests.test_architecture import ROOT, SOURCES

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "codeop",
}
FORBIDDEN_CALLS = {
    "os.system",
    "os.popen",
    "os.execv",
    "os.execvp",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
FORBIDDEN_ARGUMENTS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}


def offences(text: str) -> list[str]:
    """Each forbidden thing with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            found += [f"{node.lineno}: import {name}" for name in names & FORBIDDEN_MODULES]
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] in FORBIDDEN_MODULES
        ):
            found.append(f"{node.lineno}: from {node.module}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if called in FORBIDDEN_NAMES | FORBIDDEN_CALLS:
                found.append(f"{node.lineno}: {called}")
            found += [f"{node.lineno}: {pair}" for pair in arguments.items() if pair in FORBIDDEN_ARGUMENTS]
            if called == "torch.load" and arguments.get("weights_only") is not True:
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if called in ("np.load", "numpy.load") and arguments.get("allow_pickle") is not False:
                found.append(f"{node.lineno}: np.load without allow_pickle=False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_evaluates_unpickles_or_calls_a_shell(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(x)",
        "import pickle",
        "from pickle import loads",
        "import os\nos.system('ls')",
        "run(a, shell=True)",
        "np.load(p, allow_pickle=True)",
        "np.load(p)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "import a, marshal",
    ],
)
def test_the_check_finds_each_of_them(text):
    assert offences(text)


def test_the_check_lets_pass_what_looks_alike():
    assert offences("net.eval()\nimport pickletools\ntorch.load(p, weights_only=True)\nre.compile('a')") == []
