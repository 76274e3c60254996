"""The command line as a user meets it when all is well."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline import __version__

Glotloom = Callable[..., Result]


@pytest.fixture
def small_toml(tmp_path: Path, small_recipe: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(small_recipe)
    return path


def test_build_says_what_it_made_and_is_quiet_in_a_log(small_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    command = [sys.executable, "-m", "flows.cli", "build", str(small_toml), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{out}: ")
    assert done.stdout.splitlines()[-1] == f"look at {out / 'report.html'}"
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines][:4] == ["passages-fr", "read-math", "pool-math", "reverse-fr"]
    assert all(" in, " in line and " left" in line and "\r" not in line for line in lines)  # a line a stage, no bar


def test_a_language_without_a_row_is_told(small_toml: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    done = glotloom("build", small_toml, "--out", tmp_path / "dataset", "--set", 'languages=["en", "fr", "es"]')
    assert done.exit_code == 0, done.output
    assert "warning: no row in es" in done.stderr


def times_of_change(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in (".stages", "data", "dropped") for path in (out / folder).rglob("*")}


def test_a_second_build_uses_everything_again(small_toml: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    out = tmp_path / "dataset"
    first = glotloom("build", small_toml, "--out", out)
    times = times_of_change(out)
    started = time.monotonic()
    second = glotloom("build", small_toml, "--out", out)
    took_s = time.monotonic() - started
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    assert times == times_of_change(out)
    assert took_s < 3


def test_a_changed_key_makes_only_what_depends_on_it_anew(small_toml: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    out = tmp_path / "dataset"
    glotloom("build", small_toml, "--out", out)
    before = {path.name for path in (out / ".stages").iterdir()}
    result = glotloom("build", small_toml, "--out", out, "--set", "clean.near_duplicate_threshold=0.7")
    assert result.exit_code == 0, result.output
    made = {path.name for path in (out / ".stages").iterdir()} - before
    assert {name.rpartition("-")[0] for name in made} <= {"duplicates", "decontaminate", "prune"}
    assert "duplicates" in {name.rpartition("-")[0] for name in made}


def test_stages_can_live_elsewhere(small_toml: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    result = glotloom("build", small_toml, "--out", tmp_path / "dataset", "--work", tmp_path / "work")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "dataset" / ".stages").exists()
    assert any((tmp_path / "work").glob("prune-*/manifest.json"))


def test_a_dataset_can_be_built_into_the_folder_where_one_stands(
    small_toml: Path, tmp_path: Path, glotloom: Glotloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert glotloom("build", small_toml, "--out", ".").exit_code == 0
    assert glotloom("report", ".").exit_code == 0
    assert glotloom("export", ".", "--format", "ultralink", "--out", "records").exit_code == 0
    assert {path.name for path in Path("records").iterdir()} == {"en_math.jsonl", "fr_chat_specific.jsonl", "fr_math.jsonl"}


def test_version_is_the_packages(glotloom: Glotloom) -> None:
    assert glotloom("--version").stdout == f"glotloom, version {__version__}\n"


def test_recipes_lists_files_that_exist_and_can_be_built_by_name(glotloom: Glotloom) -> None:
    listed = dict(line.split() for line in glotloom("recipes").stdout.splitlines())
    assert {"ultralink_mini", "ultralink_full"} <= set(listed)
    assert all(Path(file).is_file() for file in listed.values())


def test_doctor_names_every_part_that_it_looks_at(glotloom: Glotloom) -> None:
    result = glotloom("doctor")
    assert result.exit_code == 0, result.output
    assert "ok       pyarrow" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(("accelerator", "no accelerator"))


def test_doctor_fails_and_says_how_to_mend_it_when_a_part_is_too_new(glotloom: Glotloom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.doctor._version", lambda name: {"fastapi": "0.999", "torch": None}.get(name, "99"))
    result = glotloom("doctor")
    assert result.exit_code == 1
    assert "wrong    fastapi            0.999, expected <0.151,>=0.139" in result.stdout
    assert "missing  torch" in result.stdout


def test_help_is_quick_because_neither_torch_nor_prefect_is_imported() -> None:
    code = "import sys; from flows.cli import main; print({'torch', 'prefect', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "set()"
