"""Progress for people: a bar with a rate and a time left on a terminal, one line a stage in a log."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import Never, Self

from tqdm import tqdm

from pipeline.engine.step import StepReport


class ProgressBar:
    """A `pipeline` progress callback, of several steps at once; `unit` names what is counted.

    `made`: the steps made now, by their reports.
    """

    def __init__(self, unit: str = "rows") -> None:
        self._unit = unit
        self.made: set[str] = set()
        self._bars: dict[str, _Bar] = {}
        self._lock = threading.RLock()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        with self._lock:
            if stage not in self._bars:
                if self._unit == "steps":  # phases, one after another
                    self._finish()
                leave = self._unit == "steps"
                self._bars[stage] = _Bar(stage, f" {self._unit}", total, leave)
            self._bars[stage].update(done, total)

    def report(self, report: StepReport) -> None:
        """One line for a step that was made now; what was finished before has had no progress and is passed over."""
        with self._lock:
            if (bar := self._bars.pop(report.stage, None)) is not None:
                self.made.add(report.stage)
                seconds = bar.close()
                tqdm.write(f"{in_words(report)}, {seconds:.1f} s", file=sys.stderr)

    def _finish(self) -> None:
        for stage, bar in self._bars.items():
            seconds = bar.close()
            if bar.silent and self._unit == "steps":
                print(f"{stage}: {seconds:.1f} s", file=sys.stderr, flush=True)
        self._bars.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._finish()


class _Bar:
    """Of one step; silent where nobody looks."""

    def __init__(self, name: str, unit: str, total: int | None, leave: bool) -> None:
        self._started = time.monotonic()
        self._bar: tqdm[Never] = tqdm(
            desc=name, total=total, unit=unit, file=sys.stderr, disable=None, leave=leave, mininterval=0.2
        )

    @property
    def silent(self) -> bool:
        return bool(self._bar.disable)

    def update(self, done: int, total: int | None) -> None:
        if total is not None:
            self._bar.total = total
        if not self.silent:
            self._bar.update(done - self._bar.n)

    def close(self) -> float:
        """The seconds it took."""
        self._bar.close()
        return time.monotonic() - self._started


def usage_in_words(dataset: Path, stages: Container[str] | None = None) -> Iterator[str]:
    """What the stages that made a dataset, or those of `stages`, asked a teacher for, as lines."""
    for stage, used in json.loads((dataset / "usage.json").read_text("utf-8")).items():
        if stages is not None and stage not in stages:
            continue
        cost = f", cost {used['cost']:.2f}" if used["cost"] else ""
        yield (
            f"{stage}: teacher {used['teacher']}, {used['requests']} requests ({used['retries']} retries), "
            f"{used['failed']} failed, {used['cached']} answers from the ledger; "
            f"{used['prompt_tokens']:,} + {used['completion_tokens']:,} tokens{cost}"
        )


def in_words(report: StepReport) -> str:
    """A stage's account as one line."""
    taken, given = f"{report.rows_in} {report.unit_in} in", f"{report.rows_out} {report.unit_out} out"
    reasons = f" ({reasons_in_words(report)})" if report.dropped else ""
    return f"{report.stage}: {taken}, {given}, {sum(report.dropped.values())} left{reasons}"


def reasons_in_words(report: StepReport) -> str:
    """What left, most frequent reason first."""
    by_count = sorted(report.dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in by_count)
