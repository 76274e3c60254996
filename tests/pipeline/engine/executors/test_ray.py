"""A build on a Ray cluster of two nodes gives the bytes of one in this process, also when workers are killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build import build
from pipeline.engine import run as engine_run
from pipeline.engine.executors import ExecutorOptions, open_executor, ray_cluster
from pipeline.engine.executors import ray as on_ray
from pipeline.engine.executors.ray import Ray
from pipeline.errors import InputError, WorkError
from pipeline.recipe import parse_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'glotloom[ray]'"),
]
ROWS = 100
HERE = os.environ | {"PYTHONPATH": str(Path(on_ray.__file__).parents[3])}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": sys.argv[1]})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of two nodes of one core each, which listen on loopback alone."""
    # Not below pytest's own folder: the path of a socket has 107 bytes at most.
    folder = tmp_path_factory.mktemp("ray")
    short = Path(gettempdir()) / f"glotloom-{os.getpid()}"
    short.symlink_to(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(short)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(30)
    short.unlink()


@pytest.fixture(scope="module")
def options(cluster):
    return ExecutorOptions(kind="ray", ray_address=cluster)


@pytest.fixture(scope="module")
def two(options, tmp_path_factory):
    """Open for all tests, since a process has one connection to Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOTLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GLOTLOOM_API_KEY", "sesame")
        with open_executor(options) as executor:
            yield executor


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "pool.parquet"
    questions = [f"A baker sells {n} loaves in the morning and {3 * n} at noon. How many does he sell?" for n in range(ROWS)]
    answers = [f"He sells {n} + {3 * n} = {4 * n} loaves on this day.\n#### {4 * n}" for n in range(ROWS)]
    questions[7] = questions[3]
    names, language = [f"{n}" for n in range(ROWS)], ["en"] * ROWS
    pq.write_table(pa.table({"id": names, "language": language, "question": questions, "answer": answers}), file)
    return file


def published(pool: Path, out: Path, executor: ExecutorOptions, part_rows: int) -> dict[str, str]:
    table = {
        "name": "small",
        "languages": ["en"],
        "agnostic": {"math": {"path": str(pool), "budget": {"en": "all"}, "licence": "CC0 1.0"}},
        "engine": {"part_rows": part_rows},
    }
    build(parse_recipe(table), out, executor=executor)
    files = sorted(file for name in ("data", "dropped") for file in (out / name).rglob("*.parquet"))
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("part_rows", [7, 20_000])
def test_a_build_gives_the_bytes_of_one_in_this_process(two, options, pool, tmp_path, monkeypatch, part_rows):
    monkeypatch.setattr(engine_run, "WORTH_SPREADING", 0)
    inline = published(pool, tmp_path / "inline", ExecutorOptions(kind="inline"), part_rows)

    assert published(pool, tmp_path / "ray", options, part_rows) == inline
    assert any("dropped" in name for name in inline)


def test_a_killed_worker_is_replaced_and_its_item_done_again(two, tmp_path):
    file = str(tmp_path / "pids")
    item = f"(open({file!r}, 'a').write(str(__import__('os').getpid()) + chr(10)), __import__('time').sleep(0.3), {{n}})[-1]"
    killed = []

    def kill() -> None:
        while not Path(file).exists() or len(Path(file).read_text().split()) < 4:
            time.sleep(0.01)
        killed.append(int(Path(file).read_text().split()[-1]))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = list(two.map(eval, [item.format(n=n) for n in range(12)]))
    thread.join()

    assert results == list(range(12))
    assert len(killed) == 1
    assert len(Path(file).read_text().split()) > 12


def test_results_come_in_order_from_both_nodes_which_have_this_pipeline(two):
    node = "__import__('ray').get_runtime_context().get_node_id()"
    code = "__import__('pipeline').__file__"
    slow_first = [f"(__import__('time').sleep({1.0 if n == 0 else 0.2}), {n}, {node}, {code})[1:]" for n in range(20)]

    results = list(two.map(eval, slow_first))

    assert [number for number, _, _ in results] == list(range(20))
    assert len({where for _, where, _ in results}) == 2
    assert {Path(file) for _, _, file in results} == {Path(on_ray.__file__).parents[2] / "__init__.py"}


def test_what_the_function_raises_surfaces_at_its_place(two):
    results = two.map(eval, ["1", "int('x')", "3"])

    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal for int"):
        next(results)


def test_workers_are_told_the_variables_of_glotloom_but_no_keys(two):
    told = list(two.map(eval, ["[__import__('os').environ.get('GLOTLOOM_' + n) for n in ('CACHE', 'API_KEY')]"] * 2))

    assert told == [[os.environ["GLOTLOOM_CACHE"], None]] * 2


def test_a_work_folder_that_a_node_does_not_see_is_named_with_the_node(two, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_SEEN_BY_NODES", "token")
    monkeypatch.setattr(ray_cluster, "_look", _sees_nothing())

    with pytest.raises(InputError, match=rf"^{tmp_path}: node 127\.0\.0\.1 of the Ray cluster does not see this folder; give"):
        on_ray.check_nodes(two._started, tmp_path)
    assert not list(tmp_path.iterdir())


def _sees_nothing():
    return eval("lambda file: ('', '')")  # of no module, so that it is sent as it is


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "6379", "somewhere"])
def test_an_address_where_no_cluster_is_is_refused_soon_in_one_line(address):
    began = time.monotonic()

    with pytest.raises(
        InputError, match=rf"^--ray-address {address}: (no cluster answers there: |expected auto, HOST:PORT)"
    ) as told:
        Ray(address, None)
    assert "\n" not in str(told.value)
    assert time.monotonic() - began < 30


OTHER = """
import ray, sys
from pipeline.engine.executors.ray import Ray
ray.__version__ = "2.0.0"
Ray(sys.argv[1], None)
"""


def test_a_cluster_of_another_version_is_refused(cluster):
    done = subprocess.run([sys.executable, "-c", OTHER, cluster], capture_output=True, text=True, check=False, env=HERE)

    assert "Version mismatch: The cluster was started with: Ray: 2.60" in done.stderr.splitlines()[-1].replace(_version(), "2.60")
    assert done.stderr.splitlines()[-1].startswith(f"pipeline.errors.InputError: --ray-address {cluster}: no cluster that can be")


def _version() -> str:
    import ray

    return ray.__version__


OWN = """
from pipeline.engine.executors.ray import Ray
executor = Ray(None, 2)
try:
    print(*set(executor.map(eval, ["__import__('os').getppid()"] * 4)), flush=True)
    list(executor.map(eval, ["__import__('time').sleep(60)"] * 2))
finally:
    executor.close(at_once=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_a_cluster_of_this_machine_listens_on_loopback_and_ends_with_the_process(how):
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # the path of a socket has 107 bytes at most
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OWN],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=HERE | {"TMPDIR": folder},
            start_new_session=True,
        )
        raylet = int(process.stdout.readline())
        own = {address for address, inode in _listening() if inode in _sockets(raylet)}
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        _, told = process.communicate(timeout=30)
        until = time.monotonic() + 20
        while (alive := _runs(raylet)) and time.monotonic() < until:
            time.sleep(0.1)

    assert own <= {"0100007F", "0000000000000000FFFF00000100007F"} and own
    assert not alive
    # A traceback, and nothing of Ray's log.
    assert told.splitlines()[-1:] == (["KeyboardInterrupt"] if how == signal.SIGINT else [])
    assert "[20" not in told


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _listening() -> list[tuple[str, str]]:
    """Address and inode of the sockets that take connections on this machine."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [(line[1].partition(":")[0], line[9]) for line in lines if line[3] == "0A"]


def _sockets(pid: int) -> set[str]:
    links = (str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir())
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}


def test_a_lost_task_is_told_in_one_line(two, monkeypatch):
    with pytest.raises(WorkError, match=r"^the Ray cluster lost a task \d+ times: ") as told:
        monkeypatch.setattr(on_ray, "_RETRIES", 0)
        on_ray._task.cache_clear()
        try:
            list(two.map(eval, ["__import__('os')._exit(3)"] * 2))
        finally:
            on_ray._task.cache_clear()
    assert "\n" not in str(told.value)
