"""Rows of a dataset from which an adapter's fixed gates are taken, and others on which they are measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from malora.adapter.logits import IGNORED
from malora.errors import InputError
from malora.training.data import Row, find_files
from malora.training.encode import EncodedRow, encode

_log = logging.getLogger("malora")


@dataclass(frozen=True, kw_only=True)
class GateRows:
    """Rows for :func:`malora.mean_gates`, and others for :func:`malora.routing_gap`."""

    gates: list[EncodedRow]
    held_out: list[EncodedRow]
    trained: bool  # held_out is of the training split, for want of validation rows


def gate_rows(
    data: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int = 256,
    language: str | None = None,
    task: str | None = None,
    max_tokens: int = 1024,
) -> GateRows:
    """Up to ``rows`` rows of a dataset, those of validation first and spread evenly over languages and tasks.

    A quarter of them is held out from the gates: validation rows only, and so perhaps fewer, unless there are none.
    """
    source = find_files(Path(data))
    strata: set[tuple[str, str]] = set()
    kept: list[EncodedRow] = []
    validation = 0
    for split in ("validation", "train"):
        found = _spread(source.rows(split), strata, language, task, rows)
        while len(kept) < rows and (chunk := list(islice(found, rows - len(kept)))):
            encoded = encode(chunk, tokenizer, max_tokens)
            kept += encoded.rows
            for row in encoded.dropped:
                _log.warning("row %s: %s; dropped", row.id, row.reason)
        if split == "validation":
            validation = len(kept)
        if len(kept) >= rows:
            break
    if not kept and not any(_is_wanted(*stratum, language, task) for stratum in strata):
        wanted = " and ".join(f"{key} {value!r}" for key, value in (("language", language), ("task", task)) if value)
        there = ", ".join(f"{code}_{kind}" for code, kind in sorted(strata))
        raise InputError(f"{data}: no row has {wanted or 'messages'}; there are {there or 'no rows'}")
    if len(kept) < 2:
        raise InputError(f"{data}: {len(kept)} of the rows asked for have an answer; at least two are needed, one of them held out")
    measured = max(1, min(len(kept) // 4, validation or len(kept)))
    return GateRows(gates=kept[measured:], held_out=kept[:measured], trained=not validation)


def _spread(rows: Iterable[Row], strata: set[tuple[str, str]], language: str | None, task: str | None, limit: int) -> Iterator[Row]:
    """The wanted rows, one of each language and task in turn; ``strata`` learns which of them there are."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        strata.add((row.language, row.task))
        group = groups.setdefault(row.stratum, [])
        if len(group) < limit and _is_wanted(row.language, row.task, language, task):
            group.append(row)
    for turn in zip_longest(*(groups[key] for key in sorted(groups))):
        yield from (row for row in turn if row is not None)


def _is_wanted(row_language: str, row_task: str, language: str | None, task: str | None) -> bool:
    return language in (None, row_language) and task in (None, row_task)


def answer_batches(
    rows: Sequence[EncodedRow], batch_size: int = 4, on_rows: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[dict[str, Tensor]]:
    """Padded batches of rows of like length, with ``labels`` and a ``mask`` of the answers' tokens."""
    from malora.training.trainer import collate  # transformers' Trainer takes seconds to import

    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.id))
    for begin in range(0, len(ordered), batch_size):
        batch = collate(ordered[begin : begin + batch_size])
        yield {**batch, "mask": batch["labels"] != IGNORED}
        on_rows(min(begin + batch_size, len(ordered)), len(ordered))
