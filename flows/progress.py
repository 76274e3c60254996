"""Progress for people: a bar with a rate and a time left on a terminal, one line a stage in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Never, Self

from tqdm import tqdm


class ProgressBar:
    """A `pipeline` progress callback; `unit` names what is counted."""

    def __init__(self, unit: str = "rows") -> None:
        self._unit = unit
        self._stage: str | None = None
        self._bar: tqdm[Never] | None = None
        self._started = self._last = 0.0
        self._done = 0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage != self._stage:
            self._finish()
            self._stage, self._started = stage, time.monotonic()
            self._bar = tqdm(
                desc=stage, total=total, unit=f" {self._unit}", file=sys.stderr, disable=None, leave=True, mininterval=0.2
            )
        self._done, self._last = done, time.monotonic()
        if total is not None and self._bar is not None:
            self._bar.total = total
        if self._bar is not None and not self._bar.disable:
            self._bar.update(done - self._bar.n)

    def _finish(self) -> None:
        if self._stage is None or self._bar is None:
            return
        if self._bar.disable:
            print(f"{self._stage}: {self._done} {self._unit} in {self._last - self._started:.1f} s", file=sys.stderr, flush=True)
        self._bar.close()
        self._stage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()
