"""Why is this row here, why was that one dropped?"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.dataset.folder import DatasetFolder
from pipeline.errors import InputError

_COLUMNS = "id, language, task, mode, source, parent_ids, teacher, prompt_version, request_keys, decisions, messages, group_id"


def explain(dataset: DatasetFolder, row_id: str) -> str:
    """The story of a row, kept or dropped, or of a passage or page: where it came from and what each stage decided.

    `row_id` may be the beginning of an id. InputError when nothing has it.
    """
    parts = [*_kept(dataset, row_id), *_dropped(dataset, row_id), *_children(dataset, row_id)]
    if not parts:
        raise InputError(f"{dataset.path}: no row, passage or page has the id {row_id!r}")
    return "\n\n".join(parts)


def _kept(dataset: DatasetFolder, row_id: str) -> Iterator[str]:
    for *row, split in dataset.query(f"SELECT {_COLUMNS}, split FROM data WHERE starts_with(id, ?) ORDER BY id LIMIT 20", row_id):
        lines = _story(row)
        passed = [r.stage for r in dataset.reports if r.unit_in == "rows" and not r.stage.startswith("pool-")]
        lines.append(f"  kept by    {', '.join(passed)}")
        lines.append(f"  stands in  {row[1]}_{row[2]}, split {split}")
        yield "\n".join(lines)


def _dropped(dataset: DatasetFolder, row_id: str) -> Iterator[str]:
    columns = f"{_COLUMNS}, stage, reason, partner_id, detail"
    for *row, stage, reason, partner, detail in dataset.query(
        f"SELECT {columns} FROM dropped WHERE starts_with(id, ?) ORDER BY id, stage LIMIT 20", row_id
    ):
        lines = _story(row)
        lines.append(f"  dropped by {stage}: {reason}" + (f" ({detail})" if detail else ""))
        if partner:
            lines.append(f"  in favour of or because of {partner}")
        yield "\n".join(lines)


def _children(dataset: DatasetFolder, row_id: str) -> Iterator[str]:
    rows = dataset.query(
        "SELECT id, language, task, split FROM data WHERE group_id = ? OR list_contains(parent_ids, ?) ORDER BY id", row_id, row_id
    )
    if rows:
        yield "\n".join([f"{row_id} gave", *(f"  {child}  {language}_{task}, {split}" for child, language, task, split in rows)])


def _story(row: list[object]) -> list[str]:
    row_id, language, task, mode, source, parents, teacher, prompt, requests, decisions, messages, group = row
    lines = [f"{row_id}  ({language}, {task or 'no row'})"]
    if isinstance(source, dict):
        place = ", ".join(f"{key} {source[key]}" for key in ("title", "revision", "url", "licence") if source.get(key))
        lines.append(f"  source     {source['name']}: {place}")
    if isinstance(parents, list) and parents:
        lines.append(f"  made of    {', '.join(parents)}, by {mode}; group {group}")
    if teacher and isinstance(requests, list):
        lines.append(
            f"  teacher    {teacher}, prompts {prompt}, {len(requests)} requests ({', '.join(key[:12] for key in requests)})"
        )
    for decision in decisions if isinstance(decisions, list) else ():
        lines.append(f"  {decision['stage']}: {decision['decision']}")
    for message in messages if isinstance(messages, list) else ():
        text = " ".join(str(message["content"]).split())
        lines.append(f"  {message['role']:<10} {text[:100]}{'…' if len(text) > 100 else ''}")
    return lines
