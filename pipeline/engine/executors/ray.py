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
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.engine.executors import cores
from pipeline.engine.executors.ray_cluster import check_nodes, connect, in_one_line, start
from pipeline.engine.step import OnProgress, Spread, here
from pipeline.engine.tasks import Task
from pipeline.errors import InputError, WorkError

Item = TypeVar("Item")
Result = TypeVar("Result")
_RETRIES = 20
"""Of one task whose worker or node was lost."""


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
            self._started = connect(address, self._over)

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
                self._started = start(self._workers or cores(), self._folder, self._over)
            # Nodes that come later are not asked; what they cannot read or write they say themselves.
            if self._address is not None and isinstance(item, Task) and item.work not in self._seen:
                check_nodes(self._started, item.work)
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
        raise WorkError(f"the Ray cluster lost a task {_RETRIES} times: {in_one_line(error)}") from error


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
