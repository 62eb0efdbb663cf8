"""The sdist and the wheel: what they hold, and the console script of an installed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("rapo_jax", "configs", "pyproject.toml", "README.md", "LICENSE")
SITE = sysconfig.get_paths()["purelib"]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
VERSIONS = ("3.11", "3.12", "3.13")


def build(folder, kind, target):
    """An sdist or a wheel of the source tree `folder`, by the installed setuptools."""
    call = f"from setuptools import build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """(sdist, wheel); the wheel is built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for path in (*(ROOT / name for name in SOURCES), *ROOT.glob("requirements*.txt")):
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, source)
    sdist = build(source, "sdist", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, build(folder / sdist.name.removesuffix(".tar.gz"), "wheel", folder)


def test_the_wheel_claims_one_package_and_has_its_configs_templates_and_script(packages):
    _, wheel = packages
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    (metadata,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"rapo_jax", metadata}
    assert {f"rapo_jax/configs/{name}.py" for name in (*NAMES, "__init__")} <= set(names)
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rapo_jax").rglob("*")
        if path.suffix in (".html", ".css", ".js", ".json", ".typed")
    }
    assert data and data <= set(names)
    scripts = zipfile.ZipFile(wheel).read(f"{metadata}/entry_points.txt").decode()
    assert "rapo-jax = rapo_jax.main:entry" in scripts


def interpreter(version):
    """The Python of a minor version, or None; a shim that starts nothing is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    roots = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    installed = sorted(roots.glob(f"{version}.*/bin/python"))
    return next(map(str, installed), None) or _working(f"python{version}")


def _working(name):
    path = shutil.which(name)
    done = path and subprocess.run([path, "-c", ""], capture_output=True, check=False)
    return path if done and done.returncode == 0 else None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_installed_script_runs_from_any_folder(packages, version, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
    (packages_folder,) = (venv / "lib").glob("python*/site-packages")
    (packages_folder / "present.pth").write_text(SITE + "\n")  # the requirements
    flags = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    line = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", *flags]
    subprocess.run([*line, packages[1]], check=True)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "configs").mkdir(parents=True)  # a user's, which must not hide ours
    for name in ("__init__", "default", "tiny"):
        (elsewhere / "configs" / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        return subprocess.run(
            [venv / "bin" / "rapo-jax", *arguments],
            cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "") and "--config=tiny" in shown.stdout
    for name in NAMES:
        done = run(f"--config={name}", "--print_config", "--config.buffer.files=()",
                   "--config.buffer.agent=checkpoint", "--config.buffer.checkpoint=.")  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), name
        assert "rl.steps: " in done.stdout
    assert run("--config=tiny").returncode == 2
    where = [venv / "bin" / "python", "-c", "import rapo_jax; print(rapo_jax.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(packages_folder))
