"""Progress for people: a bar with a rate and a time left on a terminal, one line a stage in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import Never, Self

from tqdm import tqdm

from pipeline.engine.step import StepReport


class ProgressBar:
    """A `pipeline` progress callback; `unit` names what is counted. `made`: the stages made now, by their reports."""

    def __init__(self, unit: str = "rows") -> None:
        self._unit = unit
        self.made: set[str] = set()
        self._stage: str | None = None
        self._bar: tqdm[Never] | None = None
        self._started = self._last = 0.0
        self._done = 0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage != self._stage:
            self._finish()
            self._stage, self._started = stage, time.monotonic()
            self._bar = tqdm(
                desc=stage,
                total=total,
                unit=f" {self._unit}",
                file=sys.stderr,
                disable=None,
                leave=self._unit == "steps",
                mininterval=0.2,
            )
        self._done, self._last = done, time.monotonic()
        if total is not None and self._bar is not None:
            self._bar.total = total
        if self._bar is not None and not self._bar.disable:
            self._bar.update(done - self._bar.n)

    def report(self, report: StepReport) -> None:
        """One line for a stage that was made now; what was finished before has had no progress and is passed over."""
        if self._stage == report.stage:
            seconds = self._last - self._started
            self.made.add(report.stage)
            self._finish()
            tqdm.write(f"{in_words(report)}, {seconds:.1f} s", file=sys.stderr)

    def _finish(self) -> None:
        if self._stage is None or self._bar is None:
            return
        if self._bar.disable and self._unit == "steps":
            print(f"{self._stage}: {self._last - self._started:.1f} s", file=sys.stderr, flush=True)
        self._bar.close()
        self._stage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()


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
