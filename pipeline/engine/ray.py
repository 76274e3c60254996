"""The tasks of a plan on a Ray cluster: Ray schedules, and what is true stays on the disk that all nodes see.

A task that dies with its worker or node is tried again by Ray; it writes the same bytes again or, where it was done, reads its
account. Results come in the order of the items, few of them ahead. Rows stay in files; only what a step over everything at once
spreads goes through Ray, and stays on its node.

A cluster elsewhere must have: this version of Python and of Ray; this glotloom, installed or in a folder of the same path (it is
put into PYTHONPATH); and under the same paths the work folder, the output folder and the files of the recipe. Variables named
GLOTLOOM_* go along, but for keys: what asks a teacher runs here.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import logging
import os
import shutil
import site
import socket
import sysconfig
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engine.executors import cores
from pipeline.engine.step import OnProgress, Spread, here
from pipeline.engine.tasks import Task
from pipeline.errors import InputError, WorkError

Item = TypeVar("Item")
Result = TypeVar("Result")
_RETRIES = 20
"""Of one task whose worker or node was lost."""
_PATIENCE_S = 20.0
"""For a cluster that takes a connection but does not answer."""
_NODE_PATIENCE_S = 60.0
"""For a node to start a worker and look at the work folder."""
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is sent to Ray's makers, and of accelerators nothing is said."""
_SEEN_BY_NODES = "seen-by-nodes"
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_ROOT = Path(__file__).parents[2]


class Ray:
    """On the cluster at `address`, or on one that starts on this machine with the first work and ends with this process.

    `workers` tasks at once; None: as many as the cluster has cores. InputError where no cluster answers.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        if find_spec("ray") is None:
            raise InputError("the executor ray needs Ray, which is not installed: pip install 'glotloom[ray]'")
        self._address, self._workers = address, workers
        self._lock = threading.Lock()
        self._started: Any = None
        self._folder: str | None = None
        self._seen: set[Path] = set()
        self._over = threading.Event()
        if address is not None:
            self._started = _connect(address, self._over)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Each item is a task of one core; a single one is done here."""
        first_two = list(islice(coming := iter(items), 2))
        if len(first_two) < 2:
            yield from map(function, first_two)
            return
        ray = self._ray(first_two[0])
        yield from _in_order(ray, _task(ray), function, chain(first_two, coming), self._ahead(ray))

    def alone(self, function: Callable[[Item, Spread, int, OnProgress], Result], item: Item, progress: OnProgress) -> Result:
        """On a cluster elsewhere with all cores of one node, and how far it is nobody is told; on one of this machine, here."""
        if self._address is None:
            return function(item, self.map, self._workers or cores(), progress)
        ray = self._ray(item)
        most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
        own = max(1, min(most, self._workers or most))
        result: Result = _get(ray, _task(ray, num_cpus=own, alone=True).remote(str(Path.cwd()), function, item, own))
        return result

    def close(self, *, at_once: bool = False) -> None:
        """Leave the cluster, or end the one that started here."""
        if self._started is not None:
            self._started.shutdown()
        self._over.set()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _ray(self, item: Any) -> Any:
        """The module `ray`, connected to a cluster whose nodes see the work folder of the item."""
        with self._lock:
            if self._started is None:
                self._folder = tempfile.mkdtemp(prefix="glotloom-ray-")
                self._started = _start(self._workers or cores(), self._folder, self._over)
            # Nodes that come later are not asked; what they cannot read or write they say themselves.
            if self._address is not None and isinstance(item, Task) and item.work not in self._seen:
                _check_nodes(self._started, item.work)
                self._seen.add(item.work)
        return self._started

    def _ahead(self, ray: Any) -> int:
        """How many tasks are under way. A cluster with more cores than `workers` is given no more; else one waits for each core."""
        on_cluster = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self._workers if self._workers and self._workers < on_cluster else 2 * on_cluster


def _in_order(ray: Any, task: Any, function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """At most `at_once` are not finished, at most four times as many not taken."""
    waiting: deque[Any] = deque()
    running: list[Any] = []
    folder = str(Path.cwd())
    try:
        for item in items:
            while len(running) >= at_once:
                _, running = ray.wait(running)
            waiting.append(reference := task.remote(folder, function, item))
            running.append(reference)
            while waiting and (len(waiting) > 4 * at_once or waiting[0] not in running):
                yield _get(ray, waiting.popleft())
        while waiting:
            yield _get(ray, waiting.popleft())
    finally:
        if waiting and ray.is_initialized():  # else `cancel` would start a cluster
            for reference in waiting:
                ray.cancel(reference, force=False)


def _get(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else WorkError(str(error)) from None
    except ray.exceptions.RayError as error:
        raise WorkError(f"the Ray cluster lost a task {_RETRIES} times: {_line(error)}") from error


# --- in a worker ----------------------------------------------------------------------------------------------------------------


@functools.cache
def _task(ray: Any, num_cpus: int = 1, node: str | None = None, alone: bool = False) -> Any:
    """Sent to the cluster once, whatever it is applied to."""
    strategy = None if node is None else ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)
    options = {"num_cpus": num_cpus, "max_retries": _RETRIES, "scheduling_strategy": strategy}
    return ray.remote(**options)(_apply_alone if alone else _apply)


def _apply(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    _go_to(folder)
    return function(item)


def _apply_alone(folder: str, function: Callable[[Any, Spread, int, OnProgress], Any], item: Any, workers: int) -> Any:
    """What it spreads are tasks of the same node; while it waits for them, Ray gives its cores to them."""
    import ray

    _go_to(folder)
    task = _task(ray, node=ray.get_runtime_context().get_node_id())
    return function(item, here if workers == 1 else functools.partial(_spread, task, workers), workers, lambda done, total: None)


def _spread(task: Any, workers: int, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    import ray

    first_two = list(islice(coming := iter(items), 2))
    if len(first_two) < 2:
        yield from map(function, first_two)
        return
    yield from _in_order(ray, task, function, chain(first_two, coming), 2 * workers)


def _go_to(folder: str) -> None:
    """Relative paths mean what they mean to the driver. A folder that is not here matters to them alone."""
    if Path(folder).is_dir():
        os.chdir(folder)


# --- the connection -------------------------------------------------------------------------------------------------------------


def _start(workers: int, folder: str, over: threading.Event) -> Any:
    """A cluster of this machine alone, without dashboard; its files are in `folder`."""
    ray = _module(on_loopback=True)
    with _set(_variables()):  # inherited by the workers
        error = _init(ray, over, address="local", num_cpus=workers, include_dashboard=False, _temp_dir=folder)
    if error:
        raise WorkError(f"Ray did not start on this machine: {_line(error)}") from error
    address = ray.nodes()[0]["NodeManagerAddress"]
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        raise WorkError(f"Ray {ray.__version__} would listen on {address}; start a cluster yourself and name it with --ray-address")
    return ray


def _connect(address: str, over: threading.Event) -> Any:
    """To a cluster that runs. InputError, soon, where none answers."""
    wanted, on_loopback = f"--ray-address {address}", False
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit():
            raise InputError(f"{wanted}: expected auto, HOST:PORT or ray://HOST:PORT")
        if refused := _refused(host, int(port)):
            raise InputError(f"{wanted}: no cluster answers there: {refused}")
        on_loopback = host in ("127.0.0.1", "::1", "localhost") and _refused(_own_address(), int(port)) is not None
    ray = _module(on_loopback)
    if error := _init(ray, over, address=address, runtime_env={"env_vars": _variables()}):
        raise InputError(f"{wanted}: no cluster that can be used answers there: {_line(error)}") from error
    return ray


def _refused(host: str, port: int) -> str | None:
    """Why nobody can be reached there, or None."""
    try:
        socket.create_connection((host, port), timeout=5.0).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _own_address() -> str:
    """Of this machine as others see it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _module(on_loopback: bool) -> Any:
    """`ray`, told to be quiet, and whether this machine is known to it by its loopback address, on which alone it then listens.

    Ray has no option for that: it is its default on macOS and Windows.
    """
    os.environ.update(_ENVIRONMENT)
    import ray
    from ray._private import ray_constants

    logging.getLogger("ray").setLevel(logging.CRITICAL)

    ray_constants.ENABLE_RAY_CLUSTER = not on_loopback
    return ray


@contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """Ray's compiled code writes there, past Python, that nobody answers yet."""
    before = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _init(ray: Any, over: threading.Event, **options: Any) -> BaseException | None:
    """What went wrong, or None.

    In a thread: Ray waits long for what does not answer, and takes over SIGTERM in the main thread. The thread lives on until it
    is `over`, since what Ray starts ends with the thread that started it.
    """
    told: list[BaseException] = []
    tried = threading.Event()

    def init() -> None:
        try:
            ray.init(
                namespace="glotloom",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                configure_logging=False,
                **options,
            )
        except BaseException as error:  # told to the one who waits
            told.append(error)
        tried.set()
        over.wait()

    threading.Thread(target=init, name="ray-init", daemon=True).start()
    patience_s = 4 * _PATIENCE_S if options["address"] == "local" else _PATIENCE_S
    with _stderr_aside():
        answered = tried.wait(patience_s)
    return next(iter(told), None) if answered else TimeoutError(f"no answer in {patience_s:.0f} s")


def _variables() -> dict[str, str]:
    """Of the workers: those of glotloom that hold no key, and where this process has its `pipeline` from unless it is installed."""
    own = {name: value for name, value in os.environ.items() if name.startswith("GLOTLOOM_")}
    own = {name: value for name, value in own.items() if not any(word in name.upper() for word in _SECRET)}
    installed = {*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")}
    if str(_ROOT) not in installed:
        own["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return own


def _check_nodes(ray: Any, work: Path) -> None:
    """InputError where a node that would be given tasks does not see the work folder, or has another glotloom."""
    token, file = uuid.uuid4().hex, work.absolute() / _SEEN_BY_NODES
    file.write_text(token, "utf-8")
    node_of = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        asked = {
            look.options(scheduling_strategy=node_of(node["NodeID"], soft=False)).remote(str(file)): node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_PATIENCE_S)
        for reference in answered:
            try:
                seen, code = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise InputError(f"node {asked[reference]} of the Ray cluster: cannot run glotloom: {_line(error)}") from error
            if seen != token:
                raise InputError(
                    f"{work.absolute()}: node {asked[reference]} of the Ray cluster does not see this folder; "
                    "give --work on a disk that all nodes share"
                )
            if code != _code():
                raise InputError(f"node {asked[reference]} of the Ray cluster: has another version of glotloom than this process")
    finally:
        file.unlink(missing_ok=True)


def _look(file: str) -> tuple[str, str]:
    """On a node: what the file says, and which code is there."""
    try:
        return Path(file).read_text("utf-8"), _code()
    except OSError:
        return "", _code()


@functools.cache
def _code() -> str:
    """A digest of the code of `pipeline`."""
    files = sorted((_ROOT / "pipeline").rglob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def _line(error: BaseException) -> str:
    """The first cause, which Ray tells in many lines, in one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
