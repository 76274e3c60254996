"""Every answer that was ever bought, by request: nothing answered is lost, nothing is asked twice.

One SQLite file. Durability is worth one fsync: WAL with `synchronous=FULL` survives a pulled plug as well as SIGKILL
(NORMAL syncs only at checkpoints and could lose the last answers to a power cut). Answers that arrive while a commit is on
the disk, or come fast after one another, share the next one, so the price is one fsync per batch, not per answer, and it is
paid outside the event loop.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import InputError, WorkError
from pipeline.teacher.answer import Answer

_VERSION = 1
_BETWEEN_COMMITS_S = 0.05  # while answers come fast: a commit for each of 250 a second took a third of the client's time
_FAST = 5  # answers in that time

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answer (
    request_key TEXT NOT NULL,
    max_tokens INTEGER NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (request_key, max_tokens)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS discarded (prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL);
"""

_FIND = """
SELECT text, finish_reason, request_key, prompt_tokens, completion_tokens FROM answer
WHERE request_key = ? AND (max_tokens = ? OR max_tokens < ? AND finish_reason <> 'length')
ORDER BY finish_reason = 'length', max_tokens LIMIT 1
"""

_TOKENS = """
SELECT sum(prompt_tokens), sum(completion_tokens)
FROM (SELECT prompt_tokens, completion_tokens FROM answer UNION ALL SELECT prompt_tokens, completion_tokens FROM discarded)
"""

_KEEP = "INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class Ledger:
    """Answers by request key and token limit. Of two answers to one request the first stays and both askers get it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._reader = _connect(path)
            self._writer = _connect(path)
        except sqlite3.OperationalError as error:
            raise WorkError(f"{path}: the teacher's ledger cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a ledger of teacher answers ({error}); move it away") from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._waiting: list[tuple[Answer, int, asyncio.Future[Answer]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._committed_at = -math.inf
        self._came_at = deque([-math.inf] * _FAST, _FAST)  # of the last answers

    def __len__(self) -> int:
        count: int = self._reader.execute("SELECT count(*) FROM answer").fetchone()[0]
        return count

    def tokens(self) -> tuple[int, int]:
        """Of prompts and of completions, over all answers, the discarded ones too."""
        prompt, completion = self._reader.execute(_TOKENS).fetchone()
        return prompt or 0, completion or 0

    def find(self, request_key: str, max_tokens: int) -> Answer | None:
        """The kept answer: one that ended by itself within the limit, else the one cut off at exactly this limit."""
        row = self._reader.execute(_FIND, (request_key, max_tokens, max_tokens)).fetchone()
        return _answer(row) if row else None

    async def keep(self, answer: Answer, max_tokens: int) -> Answer:
        """Return once the answer is on the disk; what is returned is what every later run will find."""
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((answer, max_tokens, kept))
        self._came_at.append(loop.time())
        if self._committing is None:
            self._committing = loop.create_task(self._commit_waiting())
        return await kept

    async def discard(self, prompt_tokens: int, completion_tokens: int) -> None:
        """An answer that cost as much and is of no use: a budget counts it, and nobody will find it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._discard, prompt_tokens, completion_tokens)

    async def close(self) -> None:
        """Commit what waits, then release the file."""
        if self._committing is not None:
            await self._committing
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()

    async def _commit_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            early_s = self._committed_at + _BETWEEN_COMMITS_S - loop.time()
            if early_s > 0 and self._came_at[0] > loop.time() - _BETWEEN_COMMITS_S:
                await asyncio.sleep(early_s)
            self._committed_at = loop.time()
            batch, self._waiting = self._waiting, []
            try:
                kept = await loop.run_in_executor(self._thread, self._commit, [(a, limit) for a, limit, _ in batch])
            except Exception as error:  # whatever it is, the askers are told: one that is not would wait for ever
                problem = WorkError(f"{self._path}: the teacher's answers cannot be written: {error}")
                problem.__cause__ = error
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(problem)
            else:
                for answer, (_, _, future) in zip(kept, batch, strict=True):
                    if not future.done():
                        future.set_result(answer)
        self._committing = None

    def _commit(self, batch: Sequence[tuple[Answer, int]]) -> list[Answer]:
        rows = [(a.request_key, limit, a.text, a.finish_reason, a.prompt_tokens, a.completion_tokens) for a, limit in batch]
        with self._writer:
            self._writer.executemany(_KEEP, rows)
        keys = [(answer.request_key, limit, limit) for answer, limit in batch]
        return [_answer(self._writer.execute(_FIND, key).fetchone()) for key in keys]

    def _discard(self, *tokens: int) -> None:
        try:
            with self._writer:
                self._writer.execute("INSERT INTO discarded VALUES (?, ?)", tokens)
        except sqlite3.Error as error:
            raise WorkError(f"{self._path}: the teacher's ledger cannot be written: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, _VERSION):
        raise InputError(f"{path}: a ledger of version {found}, this glotloom reads version {_VERSION}; move it away")
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    return connection


def _answer(row: tuple[str, str, str, int, int]) -> Answer:
    text, finish_reason, key, prompt_tokens, completion_tokens = row
    return Answer(
        text=text,
        finish_reason=finish_reason,
        request_key=key,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )
