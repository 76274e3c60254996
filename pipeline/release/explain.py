"""Why is this row here, why was that one dropped?"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import InputError
from pipeline.release.folder import DatasetFolder

_COLUMNS = "id, language, task, mode, source, parent_ids, teacher, prompt_version, request_keys, decisions, messages, group_id"
_MOST_STORIES = 20


def explain(dataset: DatasetFolder, row_id: str) -> str:
    """The story of a row, kept or dropped, or of a passage or page: where it came from and what each stage decided.

    `row_id` may be the beginning of ids that nothing has whole. InputError when nothing has it.
    """
    parts = _stories(dataset, "id = ?", row_id) + _children(dataset, row_id)
    if not parts and row_id:
        parts = _stories(dataset, "starts_with(id, ?)", row_id)
    if not parts:
        raise InputError(f"{dataset.path}: no row, passage or page has the id {row_id!r}")
    if len(parts) > _MOST_STORIES:
        parts[_MOST_STORIES:] = [f"and {len(parts) - _MOST_STORIES} more whose ids begin with {row_id}"]
    return "\n\n".join(parts)


def _stories(dataset: DatasetFolder, condition: str, row_id: str) -> list[str]:
    return [*_kept(dataset, condition, row_id), *_dropped(dataset, condition, row_id)]


def _kept(dataset: DatasetFolder, condition: str, row_id: str) -> Iterator[str]:
    passed = [r.stage for r in dataset.reports if r.unit_in == "rows" and not r.stage.startswith(("read-", "pool-"))]
    for *row, split in dataset.query(f"SELECT {_COLUMNS}, split FROM data WHERE {condition} ORDER BY id", row_id):
        yield "\n".join(
            [*_story(row), f"  kept by    {', '.join(passed)}", f"  stands in  {row[1]}_{row[2]}, split {split}", *_turns(row)]
        )


def _dropped(dataset: DatasetFolder, condition: str, row_id: str) -> Iterator[str]:
    columns = f"{_COLUMNS}, stage, reason, partner_id, detail"
    for *row, stage, reason, partner, detail in dataset.query(
        f"SELECT {columns} FROM dropped WHERE {condition} ORDER BY id, stage",
        row_id,
    ):
        lines = [*_story(row), f"  dropped by {stage}: {reason}" + (f" ({detail})" if detail else "")]
        if partner:
            lines.append(f"  because of {partner}")
        yield "\n".join([*lines, *_turns(row)])


def _children(dataset: DatasetFolder, row_id: str) -> list[str]:
    """What became of a passage, a page or a row of a pool."""
    made_of_it = "(group_id = $1 OR list_contains(parent_ids, $1))"
    rows = dataset.query(
        f"SELECT id, language || '_' || task || ', ' || split, source FROM data WHERE {made_of_it} "
        f"UNION ALL SELECT id, 'dropped by ' || stage || ': ' || reason, source FROM dropped WHERE {made_of_it} ORDER BY id",
        row_id,
    )
    if not rows:
        return []
    return ["\n".join([row_id, *_source(rows[0][-1]), "  gave", *(f"    {child}  {fate}" for child, fate, _ in rows)])]


def _story(row: list[object]) -> list[str]:
    row_id, language, task, mode, source, parents, teacher, prompt, requests, decisions, _, group = row
    lines = [f"{row_id}  ({language}{', ' if task else ''}{task})", *_source(source)]
    if isinstance(parents, list) and parents:
        lines.append(f"  made of    {', '.join(parents)}, by {mode}; group {group}")
    if teacher and isinstance(requests, list):
        lines.append(
            f"  teacher    {teacher}, prompts {prompt}, {len(requests)} requests ({', '.join(key[:12] for key in requests)})"
        )
    lines += [f"  {decision['stage']}: {decision['decision']}" for decision in (decisions if isinstance(decisions, list) else ())]
    return lines


def _source(source: object) -> Iterator[str]:
    if isinstance(source, dict):
        place = ", ".join(f"{key} {source[key]}" for key in ("title", "revision", "url", "licence") if source.get(key))
        yield f"  source     {source['name']}: {place}"


def _turns(row: list[object]) -> Iterator[str]:
    messages = row[-2]
    for message in messages if isinstance(messages, list) else ():
        text = " ".join(str(message["content"]).split())
        yield f"  {message['role']:<10} {text[:100]}{'…' if len(text) > 100 else ''}"
