"""The connection to a Ray cluster: one of this machine alone, or one elsewhere whose nodes are looked at first.

What goes wrong ends in one line, soon; Ray by itself waits long and says much.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import logging
import os
import site
import socket
import sysconfig
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, WorkError

_PATIENCE_S = 20.0
"""For a cluster that takes a connection but does not answer."""
_NODE_PATIENCE_S = 60.0
"""For a node to start a worker and look at the work folder."""
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is sent to Ray's makers, and of accelerators nothing is said."""
_SEEN_BY_NODES = "seen-by-nodes"
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_ROOT = Path(__file__).parents[3]


def start(workers: int, folder: str, over: threading.Event) -> Any:
    """A cluster of this machine alone, without dashboard; its files are in `folder`."""
    ray = _module(on_loopback=True)
    with _set(_variables()):  # inherited by the workers
        error = _init(ray, over, address="local", num_cpus=workers, include_dashboard=False, _temp_dir=folder)
    if error:
        raise WorkError(f"Ray did not start on this machine: {in_one_line(error)}") from error
    address = ray.nodes()[0]["NodeManagerAddress"]
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        raise WorkError(f"Ray {ray.__version__} would listen on {address}; start a cluster yourself and name it with --ray-address")
    return ray


def connect(address: str, over: threading.Event) -> Any:
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
        raise InputError(f"{wanted}: no cluster that can be used answers there: {in_one_line(error)}") from error
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


def check_nodes(ray: Any, work: Path) -> None:
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
                raise InputError(
                    f"node {asked[reference]} of the Ray cluster: cannot run glotloom: {in_one_line(error)}"
                ) from error
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


def in_one_line(error: BaseException) -> str:
    """The first cause, which Ray tells in many lines, in one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
