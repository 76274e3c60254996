"""Killed at any moment, or out of disk: the same command afterwards ends with the bytes of an undisturbed run."""

from __future__ import annotations

import json
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
# A change of the recipe that the last stage alone depends on.
OTHER = ("--set", "agnostic.math.budget.fr=3")

# Imports everything once and forks for every order, so that a build costs what it does and not what Python's imports do. An order
# may say after how long the child is killed, or before which of its changes to the file system: all moments can be reached.
FORKS = """
import json, os, signal, sys, time
import flows.cli, pipeline.build, pipeline.release, pipeline.report

def watch(folder, limit, counted):
    left = limit
    def count(event, arguments):
        nonlocal left
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax" or event in {
            "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
        if writes and str(arguments[0]).startswith(folder):
            left -= 1
            os.write(counted, b".")
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

for line in sys.stdin:
    order = json.loads(line)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        watch(order["folder"], order["kill_before"], writable)
        flows.cli.main(order["arguments"], prog_name="glotloom")
    os.close(writable)
    if order["kill_after_s"] is not None:
        time.sleep(order["kill_after_s"])
        os.kill(child, signal.SIGKILL)
    changes = len(b"".join(iter(lambda: os.read(readable, 65536), b"")))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(readable)
    print(json.dumps([status, changes]), flush=True)
"""


class Forks:
    """Builds in forks of one process that has imported what they need."""

    def __init__(self, recipe: Path) -> None:
        self._recipe = recipe
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORKS], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def build(self, out: Path, *options: str, kill_before: int = 0, kill_after_s: float | None = None) -> tuple[int, int]:
        """The exit code (negative: the signal) and how often the build changed something in `out`."""
        assert self._server.stdin is not None and self._server.stdout is not None
        order = {
            "arguments": ["build", str(self._recipe), "--out", str(out), *options],
            "folder": str(out),
            "kill_before": kill_before,
            "kill_after_s": kill_after_s,
        }
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        status, changes = json.loads(self._server.stdout.readline())
        return status, changes

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()


def published(out: Path) -> dict[str, bytes]:
    """What a build promises to the byte."""
    files = [out / "README.md", out / "manifest.json", *(out / "data").rglob("*"), *(out / "dropped").rglob("*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(small_recipe)
    return path


@pytest.fixture(scope="module")
def forks(recipe: Path) -> Iterator[Forks]:
    forks = Forks(recipe)
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "dataset"
    assert forks.build(out)[0] == 0
    return out


def test_two_builds_from_nothing_agree_to_the_byte(undisturbed: Path, small_dataset: Path) -> None:
    assert len(published(undisturbed)) > 6
    assert published(undisturbed) == published(small_dataset)  # made in another process, where hashes are seeded otherwise


@pytest.mark.slow
def test_killed_at_any_time_the_same_command_ends_with_the_same_bytes(forks: Forks, undisturbed: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert forks.build(tmp_path / "timed")[0] == 0
    whole_s = time.monotonic() - started
    out = tmp_path / "dataset"
    kills = [forks.build(out, kill_after_s=part * whole_s)[0] for part in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)]  # each goes on
    assert kills.count(-signal.SIGKILL) >= 3
    assert forks.build(out)[0] == 0
    assert published(out) == published(undisturbed)


@pytest.mark.slow
def test_killed_between_any_two_changes_no_folder_passes_for_what_it_is_not(
    forks: Forks, undisturbed: Path, tmp_path: Path
) -> None:
    """Another build over a finished dataset: where there is a manifest, it is the one or the other, whole."""
    old = published(undisturbed)
    shutil.copytree(undisturbed, tmp_path / "other")
    status, changes = forks.build(tmp_path / "other", *OTHER)
    new = published(tmp_path / "other")
    assert status == 0 and new != old
    without_manifest = 0
    for number in range(1, changes + 1, 5):
        out = tmp_path / f"killed-{number}"
        shutil.copytree(undisturbed, out)
        assert forks.build(out, *OTHER, kill_before=number)[0] == -signal.SIGKILL
        if (out / "manifest.json").exists():
            assert published(out) in (old, new), f"killed before change {number} of {changes}"
        else:
            without_manifest += 1
        assert forks.build(out, *OTHER)[0] == 0
        assert published(out) == new, f"killed before change {number} of {changes}"
        assert not (out / ".publishing").exists()
        shutil.rmtree(out)
    assert without_manifest, "no kill fell into the moment when the one dataset gives way to the other"


def build(recipe: Path, out: Path, *options: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own; `limit_bytes` is the largest file that it may write."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=limit)


def one_line(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    failed = [line for line in done.stderr.splitlines() if line.startswith("glotloom: ")]
    assert failed == done.stderr.splitlines()[-1:]
    assert told in failed[0]


@pytest.mark.parametrize("limit_bytes", [30, 20_000], ids=["at once", "in a stage"])
def test_when_a_file_cannot_grow_one_line_says_so_and_the_next_run_goes_on(
    forks: Forks, undisturbed: Path, recipe: Path, tmp_path: Path, limit_bytes: int
) -> None:
    one_line(build(recipe, tmp_path / "dataset", limit_bytes=limit_bytes), "File too large")
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    assert forks.build(tmp_path / "dataset")[0] == 0
    assert published(tmp_path / "dataset") == published(undisturbed)


def test_when_publishing_fails_the_dataset_before_stays_whole(
    forks: Forks, undisturbed: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(undisturbed, out)
    assert forks.build(out, *OTHER)[0] == 0  # the stages of both are finished …
    assert forks.build(out)[0] == 0
    assert published(out) == published(undisturbed)
    one_line(build(recipe, out, *OTHER, limit_bytes=4_000), "File too large")  # … so only publishing writes
    assert published(out) == published(undisturbed)
    assert not (out / ".publishing").exists()


@pytest.mark.real
def test_a_full_disk_is_told_in_one_line_and_with_room_again_the_build_goes_on(
    forks: Forks, undisturbed: Path, recipe: Path, small_disk: Path
) -> None:
    one_line(build(recipe, small_disk / "dataset"), "No space left on device")
    assert not (small_disk / "dataset" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert forks.build(small_disk / "dataset")[0] == 0
    assert published(small_disk / "dataset") == published(undisturbed)
