"""Killed at any moment, or out of disk: the same command afterwards ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Kills itself before the n-th change to the file system: the moments between which nothing lasting happens, each reachable.
KILLED_AT_CHANGE = """
import os, signal, sys
left = int(sys.argv.pop(1))
def count(event, arguments):
    global left
    writes = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax" or event in {
        "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
    if writes and str(arguments[0]).startswith(os.environ["COUNTED"]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
from flows.cli import main
main(prog_name="glotloom")
"""


def published(out: Path) -> dict[str, bytes]:
    """What a build promises to the byte."""
    files = [out / "README.md", out / "manifest.json", *(out / "data").rglob("*"), *(out / "dropped").rglob("*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.is_file()}


def build(recipe: Path, out: Path, *, set_: str = "seed=7", limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own; `limit_bytes` is the largest file that it may write."""
    command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--out", str(out), "--set", set_]

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=limit)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(small_recipe)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "dataset"
    done = build(recipe, out)
    assert done.returncode == 0, done.stderr
    return out


def test_two_builds_from_nothing_agree_to_the_byte(undisturbed: Path, small_dataset: Path) -> None:
    assert len(published(undisturbed)) > 6
    assert published(undisturbed) == published(small_dataset)  # the one in another process, hashes seeded otherwise


@pytest.mark.slow
def test_killed_at_any_time_the_same_command_ends_with_the_same_bytes(undisturbed: Path, recipe: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    build(recipe, tmp_path / "timed")
    whole_s = time.monotonic() - started
    out = tmp_path / "dataset"
    command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--out", str(out), "--set", "seed=7"]
    for part in (0.45, 0.55, 0.65, 0.75, 0.85, 0.95):  # before the first it imports; each goes on where the last one was killed
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            time.sleep(part * whole_s)
            process.kill()
    assert build(recipe, out).returncode == 0
    assert published(out) == published(undisturbed)


@pytest.mark.slow
def test_killed_between_any_two_changes_no_folder_passes_for_what_it_is_not(
    undisturbed: Path, recipe: Path, tmp_path: Path
) -> None:
    """A build of another seed over a finished dataset: with a manifest it is the one or the other, whole."""
    old = published(undisturbed)
    shutil.copytree(undisturbed, tmp_path / "other")
    assert build(recipe, tmp_path / "other", set_="seed=8").returncode == 0
    new = published(tmp_path / "other")
    assert new != old
    total = changes_of_a_build(recipe, undisturbed, tmp_path / "counted")
    half_done = 0
    # Every moment of the last stretch, where the dataset is published, and some of the stages before it.
    for number in [*range(5, total - 34, 25), *range(total - 30, total, 4)]:
        out = tmp_path / f"killed-{number}"
        shutil.copytree(undisturbed, out)
        assert killed_at(number, recipe, out) == -signal.SIGKILL
        if (out / "manifest.json").exists():
            assert published(out) in (old, new), f"killed before change {number} of {total}"
        else:
            half_done += 1
        assert build(recipe, out, set_="seed=8").returncode == 0
        assert published(out) == new, f"killed before change {number} of {total}"
        assert not (out / ".publishing").exists()
    assert half_done, "none of the kills hit the moment when the old dataset gives way to the new one"


def changes_of_a_build(recipe: Path, undisturbed: Path, out: Path) -> int:
    """How often a build of seed 8 over the dataset of seed 7 changes the file system."""
    shutil.copytree(undisturbed, out)
    code = KILLED_AT_CHANGE.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass").replace(
        'main(prog_name="glotloom")', 'main(prog_name="glotloom", standalone_mode=False); print("left", left)'
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "1000000", "build", str(recipe), "--out", str(out), "--set", "seed=8"],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "COUNTED": str(out)},
    )  # fmt: skip
    return 1_000_000 - int(done.stdout.split("left ")[-1])


def killed_at(number: int, recipe: Path, out: Path) -> int:
    command = [sys.executable, "-c", KILLED_AT_CHANGE, str(number), "build", str(recipe), "--out", str(out), "--set", "seed=8"]
    return subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env={**os.environ, "COUNTED": str(out)}).returncode


def one_line(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    failed = [line for line in done.stderr.splitlines() if line.startswith("glotloom: ")]
    assert failed == done.stderr.splitlines()[-1:]
    assert told in failed[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit_bytes", [30, 2_000, 20_000], ids=["at once", "in a stage", "in a larger stage"])
def test_when_a_file_cannot_grow_one_line_says_so_and_the_next_run_goes_on(
    undisturbed: Path, recipe: Path, tmp_path: Path, limit_bytes: int
) -> None:
    one_line(build(recipe, tmp_path / "dataset", limit_bytes=limit_bytes), "File too large")
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    assert build(recipe, tmp_path / "dataset").returncode == 0
    assert published(tmp_path / "dataset") == published(undisturbed)


def test_when_publishing_fails_the_dataset_before_stays_whole(undisturbed: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    assert build(recipe, out, set_="seed=8").returncode == 0  # the stages of both seeds are finished …
    assert build(recipe, out).returncode == 0
    assert published(out) == published(undisturbed)
    one_line(build(recipe, out, set_="seed=8", limit_bytes=4_000), "File too large")  # … so only publishing writes
    assert published(out) == published(undisturbed)
    assert not (out / ".publishing").exists()


@pytest.fixture(params=[64, 400, 900], ids=lambda size: f"{size} KiB")
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.real
def test_a_full_disk_is_told_in_one_line_and_with_room_again_the_build_goes_on(
    undisturbed: Path, recipe: Path, small_disk: Path
) -> None:
    one_line(build(recipe, small_disk / "dataset"), "No space left on device")
    assert not (small_disk / "dataset" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert build(recipe, small_disk / "dataset").returncode == 0
    assert published(small_disk / "dataset") == published(undisturbed)
