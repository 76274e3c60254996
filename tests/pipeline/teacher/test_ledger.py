"""What was answered stays answered: across restarts, kills and changed limits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, WorkError
from pipeline.rows.sample import Message
from pipeline.teacher import Answer, Ledger, TeacherClient
from pipeline.teacher.answer import request_key


def answer(text: str, finish_reason: str = "stop", key: str = "k") -> Answer:
    return Answer(text=text, finish_reason=finish_reason, request_key=key, prompt_tokens=3, completion_tokens=2)


def with_ledger(path: Path, use: Callable[[Ledger], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        ledger = Ledger(path)
        try:
            return await use(ledger)
        finally:
            await ledger.close()

    return asyncio.run(run())


def test_an_answer_is_found_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ledger.sqlite"
    kept = answer("Une robe – 一件长袍.")
    with_ledger(path, lambda ledger: ledger.keep(kept, 50))

    async def find(ledger: Ledger) -> tuple[Answer | None, Answer | None, int]:
        return ledger.find("k", 50), ledger.find("another", 50), len(ledger)

    assert with_ledger(path, find) == (kept, None, 1)


def test_an_answer_that_ended_by_itself_serves_every_larger_limit_and_a_cut_one_its_own(tmp_path: Path) -> None:
    async def use(ledger: Ledger) -> dict[int, str | None]:
        await ledger.keep(answer("cut", "length"), 20)
        await ledger.keep(answer("whole"), 40)
        found = {limit: ledger.find("k", limit) for limit in (10, 20, 30, 40, 80)}
        return {limit: kept.text if kept else None for limit, kept in found.items()}

    assert with_ledger(tmp_path / "l.sqlite", use) == {10: None, 20: "cut", 30: None, 40: "whole", 80: "whole"}


def test_the_first_of_two_answers_to_one_request_stays_and_both_askers_get_it(tmp_path: Path) -> None:
    async def use(ledger: Ledger) -> list[Answer]:
        return list(await asyncio.gather(ledger.keep(answer("first"), 50), ledger.keep(answer("second"), 50)))

    assert [kept.text for kept in with_ledger(tmp_path / "l.sqlite", use)] == ["first", "first"]


def test_many_answers_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"

    async def use(ledger: Ledger) -> int:
        await asyncio.gather(*(ledger.keep(answer(f"{i}", key=f"{i}"), 50) for i in range(2000)))
        return len(ledger)

    assert with_ledger(path, use) == 2000


def test_an_asker_that_is_cancelled_leaves_its_answer_behind(tmp_path: Path) -> None:
    async def use(ledger: Ledger) -> int:
        keeping = asyncio.create_task(ledger.keep(answer("paid for"), 50))
        await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await ledger.keep(answer("next", key="n"), 50)
        return len(ledger)

    assert with_ledger(tmp_path / "l.sqlite", use) == 2


def test_an_answer_that_cannot_be_written_is_told_to_all_who_wait_and_the_next_is_kept(tmp_path: Path) -> None:
    async def use(ledger: Ledger) -> tuple[list[Any], Answer]:
        async with asyncio.timeout(10):
            bad = (ledger.keep(answer("half a pair: \ud83d", key=f"{i}"), 50) for i in range(2))
            return await asyncio.gather(*bad, return_exceptions=True), await ledger.keep(answer("whole"), 50)

    faults, kept = with_ledger(tmp_path / "l.sqlite", use)
    assert [type(fault) for fault in faults] == [WorkError, WorkError]
    assert "l.sqlite: the teacher's answers cannot be written: 'utf-8' codec" in str(faults[0])
    assert kept == answer("whole")


def test_a_file_that_is_no_ledger_is_wrong_input(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("not a database at all " * 100)
    with pytest.raises(InputError, match=r"ledger\.sqlite: not a ledger"):
        Ledger(path)


def test_the_key_names_model_messages_and_parameters() -> None:
    messages = [Message("user", "What is a kimono?")]
    keys = {
        request_key("m", messages, {"temperature": 0.0}),
        request_key("n", messages, {"temperature": 0.0}),
        request_key("m", [Message("system", "What is a kimono?")], {"temperature": 0.0}),
        request_key("m", [*messages, *messages], {"temperature": 0.0}),
        request_key("m", messages, {"temperature": 0.5}),
    }
    assert len(keys) == 5
    assert request_key("m", messages, {"a": 1, "b": 2}) == request_key("m", messages, {"b": 2, "a": 1})


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_different_messages_have_different_keys(one: list[str], other: list[str]) -> None:
    first, second = ([Message("user", text) for text in texts] for texts in (one, other))
    assert (request_key("m", first, {}) == request_key("m", second, {})) == (one == other)


ASKER = """
import asyncio, sys
from pathlib import Path
from pipeline.rows.sample import Message
from pipeline.teacher import Ledger, TeacherClient

async def main(url, path):
    client = TeacherClient(name="t", base_urls=[url], model="m", ledger=Ledger(Path(path)), parameters={}, max_concurrency=8)
    async def ask(i):
        await client.ask([Message("user", f"question {i}")])
        print(i, flush=True)
    async with client:
        await asyncio.gather(*(ask(i) for i in range(300)))

asyncio.run(main(*sys.argv[1:]))
"""


def test_killed_at_any_moment_no_answer_is_lost_or_asked_for_twice(teacher_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    teacher_server.answer = lambda request: f"Answer to {request['messages'][0]['content']}."
    teacher_server.delay_s = 0.01
    asked_by_then: dict[int, int] = {}

    def times_asked() -> Counter[str]:
        return Counter(request["messages"][0]["content"] for request in list(teacher_server.requests))

    for kill_after in (1, 40, 120):  # lines, those answered from the ledger first
        child = subprocess.Popen(
            [sys.executable, "-c", ASKER, teacher_server.url, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env=dict(os.environ),
        )
        assert child.stdout is not None
        received = {int(child.stdout.readline()) for _ in range(kill_after)}
        child.send_signal(signal.SIGKILL)
        received.update(int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n"))
        child.wait()
        for i in received:
            asked_by_then.setdefault(i, times_asked()[f"question {i}"])

    async def finish(ledger: Ledger) -> list[Answer]:
        client = TeacherClient(name="t", base_urls=[teacher_server.url], model="m", ledger=ledger, parameters={})
        async with client:
            return [await client.ask([Message("user", f"question {i}")]) for i in range(300)]

    teacher_server.delay_s = 0.0
    answers = with_ledger(path, finish)
    assert [a.text for a in answers] == [f"Answer to question {i}." for i in range(300)]
    assert 120 <= len(asked_by_then) < 300
    assert {i: times_asked()[f"question {i}"] for i in asked_by_then} == asked_by_then
