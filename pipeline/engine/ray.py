"""The tasks of a plan on a Ray cluster: Ray schedules, and what is true stays on the disk that all nodes see.

A task that dies with its worker or node is tried again by Ray; it writes the same bytes again or, where it was done, reads its
account. Results come in the order of the items, few of them ahead.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, TypeVar

from pipeline.engine.processes import Processes
from pipeline.engine.step import OnProgress, Spread
from pipeline.errors import InputError, WorkError

Item = TypeVar("Item")
Result = TypeVar("Result")
_RETRIES = 20
"""Of one task whose worker or node was lost."""


class Ray:
    """On the cluster at `address`, or on one that starts on this machine and ends with this process.

    `workers` tasks at once; None: as many as the cluster has cores.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        if find_spec("ray") is None:
            raise InputError("the executor ray needs Ray, which is not installed: pip install 'glotloom[ray]'")
        import ray

        self._ray: Any = ray
        try:
            self._connection = ray.init(
                address=address,
                namespace="glotloom",
                include_dashboard=False if address is None else None,
                num_cpus=workers if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
            raise InputError(f"--ray-address {address}: no cluster answers there: {str(error).splitlines()[0]}") from error
        self._workers = workers

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Each item is a task of one core."""
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        waiting: deque[Any] = deque()
        at_once = self._workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        try:
            for item in items:
                # So many are under way; those behind them that are done wait for the first one.
                while waiting and len(self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[1]) >= at_once:
                    self._ray.wait(list(waiting), num_returns=len(waiting) - at_once + 1)
                while waiting and (len(waiting) > 4 * at_once or self._ray.wait([waiting[0]], timeout=0)[0]):
                    yield self._get(waiting.popleft())
                waiting.append(remote.remote(item))
            while waiting:
                yield self._get(waiting.popleft())
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=False)

    def alone(self, function: Callable[[Item, Spread, int, OnProgress], Result], item: Item, progress: OnProgress) -> Result:
        """With all cores of one node; how far it is nobody is told."""
        cores = max((int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]), default=1)
        remote = self._ray.remote(num_cpus=max(1, cores), max_retries=_RETRIES)(_with_cores)
        result: Result = self._get(remote.remote(function, item, max(1, cores)))
        return result

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else WorkError(str(error)) from None
        except self._ray.exceptions.RayError as error:
            raise WorkError(f"the Ray cluster lost a task {_RETRIES} times: {str(error).splitlines()[0]}") from error

    def close(self, *, at_once: bool = False) -> None:
        """Leave the cluster, or end the one that started here."""
        self._ray.shutdown()


def _with_cores(function: Callable[[Any, Spread, int, OnProgress], Any], item: Any, cores: int) -> Any:
    """In a worker of Ray: what it spreads goes to processes of its node."""
    with Processes(cores) as processes:
        return processes.alone(function, item, lambda done, total: None)
