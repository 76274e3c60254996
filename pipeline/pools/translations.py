"""Which translations of a pool may stay: in a wanted language, of an original that is bound to no culture, and faithful to it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.engine.batches import blocks
from pipeline.engine.step import Context, Decisions, Drop
from pipeline.files import Spool
from pipeline.pools.screen import culture_bound
from pipeline.pools.translation import Turns, translation_fault
from pipeline.rows.sample import Message
from pipeline.rows.tables import TextTable

_ROWS_OF_A_TASK = 500


@dataclass(frozen=True)
class _Original:
    """What translations are held against; it waits on the disk."""

    id: str
    messages: Turns


def decide_translations(table: TextTable, context: Context, *, wanted: tuple[str, ...], screen: bool) -> Decisions:
    """Drops rows in other languages than the wanted ones and unfaithful translations; translations without an original stay.

    The original of a row is the last English row of its group, which need not be wanted itself. Memory: some 150 bytes a row;
    the texts of originals wait on the disk.
    """
    languages, own_groups = (
        [value for batch in table.batches([name]) for value in batch.column(0).to_pylist()] for name in ("language", "group_id")
    )
    # group of a translation -> where its original lies, -1 while that is not known
    groups = {group: -1 for code, group in zip(languages, own_groups, strict=True) if code != "en"}
    drops: list[Drop] = [(row, "language_not_wanted", "", None, "") for row, code in enumerate(languages) if code not in wanted]
    notes: list[str | None] = [None] * len(languages)
    is_original = [code == "en" and group in groups for code, group in zip(languages, own_groups, strict=True)]
    with Spool[_Original](context.folder / "originals") as spool:
        for row, id_, messages in _rows(table, is_original):
            groups[own_groups[row]] = spool.put(_Original(id_, messages))
        is_checked = [
            code != "en" and code in wanted and groups[group] >= 0 for code, group in zip(languages, own_groups, strict=True)
        ]
        pairs = ((row, spool.get(groups[own_groups[row]]), messages) for row, _, messages in _rows(table, is_checked))
        for found in context.spread(functools.partial(_judge, screen=screen), blocks(pairs, _ROWS_OF_A_TASK)):
            for row, original, reason, detail in found:
                if reason:
                    drops.append((row, reason, original, None, detail))
                else:
                    notes[row] = f"a faithful translation of {original}"
                context.progress(row + 1, len(languages))
    return Decisions.of(drops, notes)


def _rows(table: TextTable, wanted: Sequence[bool]) -> Iterator[tuple[int, str, Turns]]:
    """Number, id and turns of the wanted rows."""
    begin = 0
    for batch in table.batches(["id", "messages"]):
        numbers = [number for number in range(begin, begin + batch.num_rows) if wanted[number]]
        chosen = batch.take(pa.array([number - begin for number in numbers], pa.int64())) if numbers else batch.slice(0, 0)
        for number, id_, messages in zip(numbers, *(column.to_pylist() for column in chosen.columns), strict=True):
            yield number, id_, tuple(Message(m["role"], m["content"]) for m in messages)
        begin += batch.num_rows


def _judge(pairs: list[tuple[int, _Original, Turns]], *, screen: bool) -> list[tuple[int, str, str, str]]:
    """Of each translation its number, its original, and `reason` and `detail` of why it is dropped, or nothing."""
    return [(row, original.id, *_fault(original.messages, messages, screen)) for row, original, messages in pairs]


def _fault(original: Turns, translation: Turns, screen: bool) -> tuple[str, str]:
    if screen and (criterion := _culture_bound(original)):
        return "culture_bound", criterion
    return translation_fault(original, translation) or ("", "")


@functools.lru_cache(maxsize=1_024)
def _culture_bound(messages: Turns) -> str | None:
    """An original has as many translations as there are languages."""
    return culture_bound(messages)
