"""One request to a teacher and its answer: the key that names it, the body that carries it, the response that is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.rows.sample import Message
from pipeline.teacher.errors import PassingError

MALFORMED_TRIES = 5
"""Nonsense so many times is a fixed defect: where one answer in ten is nonsense, it is chance for one request in 100,000."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the teacher said. It holds nothing of time, so that equal answers make equal rows."""

    text: str
    finish_reason: str
    """`stop`, `length` (cut off, even with the limit doubled), `content_filter`, or the server's own word."""
    request_key: str
    prompt_tokens: int
    completion_tokens: int


def request_key(model: str, messages: Sequence[Message], parameters: Mapping[str, Any]) -> str:
    """SHA-256 of model, messages and sampling parameters as canonical JSON.

    The endpoint's address and key are left out: the same model served elsewhere gives the same answers. The token limit
    is left out too: an answer that ended by itself is the answer under every larger limit (`Ledger.find`).
    """
    request = {"model": model, "messages": [[m.role, m.content] for m in messages], "parameters": dict(parameters)}
    canonical = json.dumps(request, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def request_body(model: str, messages: Sequence[Message], parameters: Mapping[str, Any], max_tokens: int) -> bytes:
    """The JSON body of `POST …/chat/completions`."""
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return json.dumps({"model": model, "messages": turns, "max_tokens": max_tokens, **parameters}).encode()


def read_answer(body: bytes, key: str, *, redact: Callable[[str], str]) -> Answer:
    """The answer in a 200 response; PassingError when there is none in it, for an empty answer is not an answer.

    `redact` hides the API key in what is quoted of the response; it comes before any cut, which would leave half a key.
    """
    try:
        response = json.loads(body)
    except ValueError:
        raise PassingError(f"not JSON: {_excerpt(body, redact)}", status=200, tries=MALFORMED_TRIES) from None
    try:
        choice = response["choices"][0]
        text = choice["message"]["content"] or ""
        finish_reason = choice.get("finish_reason") or "stop"
        text, finish_reason = text.strip(), str(finish_reason)
        f"{text}{finish_reason}".encode()
    except UnicodeEncodeError:  # half of a surrogate pair passes as JSON
        raise PassingError(f"not Unicode: {_excerpt(body, redact)}", status=200, tries=MALFORMED_TRIES) from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise PassingError(f"no choices in {_excerpt(body, redact)}", status=200, tries=MALFORMED_TRIES) from None
    usage = response.get("usage")
    tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if not text:
        message = f"an empty answer (finish_reason {finish_reason!r})"
        raise PassingError(message, status=200, tries=MALFORMED_TRIES, tokens=tokens)
    return Answer(
        text=text,
        finish_reason=finish_reason,
        request_key=key,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
    )


def error_message(body: bytes, *, redact: Callable[[str], str]) -> str:
    """What an error response says, on one line: OpenAI's `error.message` where it is, else the start of the body."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = None
    if not message:
        return _excerpt(body, redact)
    return " ".join(redact(str(message)).split())[:300].encode("utf-8", "replace").decode()


def _excerpt(body: bytes, redact: Callable[[str], str]) -> str:
    text = " ".join(redact(body.decode("utf-8", "replace")).split())
    return repr(text[:120]) if text else "an empty body"


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0
