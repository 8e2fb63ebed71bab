"""What a built package holds, and that its command works in an empty folder, without the checkout."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.scripts import ROOT

setuptools = pytest.importorskip("setuptools", minversion="77")


def test_the_package_claims_its_own_name_alone(monkeypatch):
    """By the configuration that the build reads."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path("setup.py")
    packages = given["packages"]
    assert {name.split(".")[0] for name in packages} == {"ann2snn"}
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("ann2snn/**/__init__.py")}
    assert set(packages) == folders | {"ann2snn.flagfiles"} and len(packages) == len(set(packages))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, which the build may fill."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ann2snn", "quant", "config", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of a virtual environment with the wheel, and with the packages that run these tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        target = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert target.split() == ["[console_scripts]", "ann2snn", "=", "ann2snn.commands.main:main"]
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = folder / "bin" / "ann2snn"  # as pip writes it
    program.write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom ann2snn.commands.main import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.slow
def test_the_wheel_holds_the_program_its_data_and_its_flagfiles(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"ann2snn"}
    flagfiles = {f"ann2snn/flagfiles/{path.relative_to(ROOT / 'config')}" for path in ROOT.glob("config/*/*.txt")}
    data = {"ann2snn/data/fashion_mnist_10k/images-idx3-ubyte.gz", "ann2snn/quant/weight.py"}
    data |= {f"ann2snn/report/page.{ending}" for ending in ("css", "js")}
    assert flagfiles | data <= inside and any(name.endswith(".safetensors") for name in inside)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_command_works_in_an_empty_folder(installed, tmp_path):
    def command(*arguments: str) -> subprocess.CompletedProcess:
        done = subprocess.run([installed, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    assert command("--version").stdout.startswith("ann2snn ")
    small = ["--ch=8", "--ch_mult=1", "--ch_mult=2", "--norm_groups=4", "--num_res_blocks=1", "--img_size=8"]
    small += ["--total_steps=2", "--batch_size=8", "--sample_size=4", "--sample_step=0", "--num_threads=1"]
    two = command("train", "--flagfile", "config/train_ANN/demo.txt", *small, "--nproc=2", "--device=cpu")
    where = Path("site-packages/ann2snn/flagfiles/train_ANN/demo.txt")
    assert two.stdout.count(f"{where}, as shipped") == 1 and (tmp_path / "logs/demo/ckpt.pt").exists()
    where = command("convert", "--flagfile", "config/SNN_convert/demo.txt", "--gap_images=1", "--gen_images=0")
    assert "as shipped" in where.stdout and (tmp_path / "logs/demo/converted_snn.pt").exists()
    assert "report.html" in command("report", "logs/demo").stdout
    command("export", "logs/demo/converted_snn.pt", "net")
    code = "import ann2snn; print(ann2snn.__file__, type(ann2snn.load('net')).__module__); import quant"
    done = subprocess.run(
        [installed.parent / "python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert str(ROOT) not in done.stdout and "ann2snn.convert" in done.stdout
    assert "No module named 'quant'" in done.stderr
