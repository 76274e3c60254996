"""Which translations of a pool may stay: in a wanted language, of an original that is bound to no culture, and faithful to it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

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

    The original of a row is the last English row of its group, which need not be wanted itself. Memory: some 100 bytes a row of a
    group with translations; the texts of originals wait on the disk.
    """
    languages: list[str] = []
    groups: dict[str, int] = {}  # group of a translation -> where its original lies, -1 while that is not known
    for batch in table.batches(["language", "group_id"]):
        own = batch.column(0).to_pylist()
        groups.update((group, -1) for code, group in zip(own, batch.column(1).to_pylist(), strict=True) if code != "en")
        languages += own
    drops: list[Drop] = [(row, "language_not_wanted", "", None, "") for row, code in enumerate(languages) if code not in wanted]
    notes: list[str | None] = [None] * len(languages)
    with Spool[_Original](context.folder / "originals") as spool:
        for row, group, id_, messages in _rows(table):
            if languages[row] == "en" and group in groups:
                groups[group] = spool.put(_Original(id_, messages))
        pairs = (
            (row, spool.get(groups[group]), messages)
            for row, group, _, messages in _rows(table)
            if languages[row] != "en" and languages[row] in wanted and groups[group] >= 0
        )
        for found in context.spread(functools.partial(_judge, screen=screen), blocks(pairs, _ROWS_OF_A_TASK)):
            for row, original, reason, detail in found:
                if reason:
                    drops.append((row, reason, original, None, detail))
                else:
                    notes[row] = f"a faithful translation of {original}"
                context.progress(row + 1, len(languages))
    return Decisions.of(drops, notes)


def _rows(table: TextTable) -> Iterator[tuple[int, str, str, Turns]]:
    """Number, group, id and turns of every row."""
    number = 0
    for batch in table.batches(["group_id", "id", "messages"]):
        for group, id_, messages in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield number, group, id_, tuple(Message(m["role"], m["content"]) for m in messages)
            number += 1


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
