"""A wheel installed outside the clone has all that the commands need. (The whole demo from a wheel takes minutes: by hand.)"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from pipeline import __version__

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is the package, so that nothing is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "malora", "flows"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    # With a setuptools here that can, the build needs no network; else pip fetches one, as it did for this environment.
    here = [distribution.version for distribution in importlib.metadata.distributions(name="setuptools")]
    isolation = ["--no-build-isolation"] if here and int(here[0].partition(".")[0]) >= 77 else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation]
    run(*pip, "--wheel-dir", folder, folder / "source", cwd=folder)
    [wheel] = folder.glob("glotloom-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment that holds the wheel, and sees this one's dependencies but not the clone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Named without an editable install's finder: a .pth file in a folder that a .pth file names is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=folder)
    return folder / "bin"


@pytest.mark.real
@pytest.mark.slow
def test_the_installed_command_builds_from_its_own_samples_in_another_folder(
    installed: Path, tmp_path: Path, small_recipe: str
) -> None:
    (tmp_path / "small.toml").write_text(small_recipe)
    assert run(installed / "glotloom", "--version", cwd=tmp_path) == f"glotloom, version {__version__}\n"
    told = run(installed / "python", "-c", "import pipeline, malora, flows; print(pipeline.__file__)", cwd=tmp_path)
    assert told.startswith(str(installed.parent))
    for line in run(installed / "glotloom", "recipes", cwd=tmp_path).splitlines():
        assert line.split()[1].startswith(str(installed.parent)) and Path(line.split()[1]).is_file()
    run(installed / "glotloom", "build", "small.toml", "--out", "dataset", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "dataset" / "data").iterdir()} == {"en_math", "fr_chat_specific", "fr_math"}
    assert "<h1>small</h1>" in (tmp_path / "dataset" / "report.html").read_text("utf-8")


@pytest.mark.real
@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    import zipfile

    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for name in ("pipeline", "malora", "flows")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - packed == set()
    assert not {name for name in packed if name.startswith(("tests", "tools", "docs", "examples"))}
