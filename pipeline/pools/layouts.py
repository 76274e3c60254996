"""The turns of a row in any of the usual layouts of chat and instruction data."""

from __future__ import annotations

from typing import Any

from pipeline.rows.sample import Message

# Question and answer columns of the pools that UltraLink uses (MetaMathQA, Magicoder) and their like.
PAIRS = (
    ("query", "response"),
    ("question", "answer"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("problem", "solution"),
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def messages_of(raw: dict[str, Any]) -> tuple[Message, ...] | None:
    """The turns, or None where the row has no layout that is known."""
    turns = raw.get("messages") or raw.get("conversations") or raw.get("data")
    if isinstance(turns, list) and turns:
        messages = [_message(number, turn) for number, turn in enumerate(turns)]
        return tuple(message for message in messages if message) if all(messages) else None
    for question, answer in PAIRS:
        if isinstance(raw.get(question), str) and isinstance(raw.get(answer), str):
            more = raw.get("input")  # what an Alpaca row's instruction is about
            asked = f"{raw[question]}\n\n{more}" if isinstance(more, str) and more.strip() else raw[question]
            return Message("user", asked), Message("assistant", raw[answer])
    return None


def _message(number: int, turn: Any) -> Message | None:
    """One turn as `{role, content}`, `{from, value}` or, user and assistant by turns, as a text."""
    if isinstance(turn, str):
        return Message(("user", "assistant")[number % 2], turn)
    if not isinstance(turn, dict):
        return None
    role, content = _ROLES.get(str(turn.get("role", turn.get("from")))), turn.get("content", turn.get("value"))
    return Message(role, content) if role and isinstance(content, str) else None
