"""The client against a server that does everything wrong that servers do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pipeline.errors import InputError, WorkError
from pipeline.recipe import Teacher
from pipeline.rows.sample import Message
from pipeline.teacher import Answer, BudgetError, Ledger, TeacherClient, TeacherError, open_teacher
from pipeline.teacher import client as client_module
from pipeline.teacher.answer import error_message

QUESTION = (Message("system", "Be brief."), Message("user", "What is a kimono?"))
KEY = "sk-secret-0123456789"


def completion(text: object, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"finish_reason": finish_reason, "message": message}]}


def ask(server: Any, tmp_path: Path, *questions: tuple[Message, ...], **options: Any) -> tuple[Any, TeacherClient]:
    """The answers (or the first error) to the questions, asked one after the other."""

    async def run() -> tuple[Any, TeacherClient]:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        settings = {"parameters": {"temperature": 0.0}, "first_wait_s": 0.01, "max_tokens": 50, **options}
        client = TeacherClient(**{"name": "main", "base_urls": [server.url], "model": "m", "ledger": ledger, **settings})
        try:
            async with client:
                return [await client.ask(question) for question in questions], client
        except (InputError, WorkError) as error:
            return error, client
        finally:
            await ledger.close()

    return asyncio.run(run())


def reply(body: object = b"", status: int = 200, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if isinstance(body, dict):
            return web.json_response(body, status=status, headers=headers)
        return web.Response(body=body, status=status, headers=headers)  # type: ignore[arg-type]

    return answer


async def reset(request: web.Request) -> web.StreamResponse:
    request.transport.abort()  # type: ignore[union-attr]
    return web.Response()


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "500"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.abort()  # type: ignore[union-attr]
    return response


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


def test_the_request_is_openai_chat_completions_and_the_answer_is_stripped(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.answer = lambda request: "  A robe.\n"
    (answer,), client = ask(teacher_server, tmp_path, QUESTION)
    assert answer.text == "A robe." and answer.finish_reason == "stop"
    assert (answer.prompt_tokens, answer.completion_tokens) == (11, 7)
    assert teacher_server.requests == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a kimono?"}],
            "max_tokens": 50,
            "temperature": 0.0,
        }
    ]
    assert client.usage.requests == 1 and client.usage.completion_tokens == 7


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(reply({"error": {"message": "slow down"}}, 429, **{"Retry-After": "0"}), id="429 with Retry-After"),
        pytest.param(reply(b"", 429), id="429 without"),
        pytest.param(reply(b"<html>oops</html>", 500), id="500"),
        pytest.param(reply(b"", 503, **{"Retry-After": "soon"}), id="503 with an unreadable Retry-After"),
        pytest.param(reset, id="reset"),
        pytest.param(break_off, id="reset in mid-body"),
        pytest.param(hang, id="hang"),
        pytest.param(reply(b'{"choices": [{'), id="junk JSON"),
        pytest.param(reply(b"[1, 2]"), id="JSON of another shape"),
        pytest.param(reply({"object": "chat.completion"}), id="no choices"),
        pytest.param(reply({"choices": []}), id="empty choices"),
        pytest.param(reply(completion("  \n")), id="empty content"),
        pytest.param(reply(completion(None)), id="null content"),
        pytest.param(reply(completion([{"type": "text"}])), id="content that is no text"),
        pytest.param(reply(completion("Half a pair: \ud83d")), id="content that is not Unicode"),
        pytest.param(reply(completion("A robe.", "\ud83d")), id="a finish reason that is not Unicode"),
    ],
)
def test_a_passing_fault_costs_one_retry_and_no_answer(teacher_server: Any, tmp_path: Path, fault: Any) -> None:
    teacher_server.then(fault)
    (answer,), client = ask(teacher_server, tmp_path, QUESTION, timeout_s=0.3)
    assert answer.text == "A good answer."
    assert (client.usage.requests, client.usage.retries, client.usage.failed) == (2, 1, 0)


def test_retry_after_is_waited_for(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.then(reply(b"", 429, **{"Retry-After": "0.4"}))
    start = time.monotonic()
    ask(teacher_server, tmp_path, QUESTION)
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_lasting_fault_is_not_retried_and_names_status_and_reason(teacher_server: Any, tmp_path: Path, status: int) -> None:
    teacher_server.then(reply({"error": {"message": "no such\nmodel 'm'"}}, status))
    error, client = ask(teacher_server, tmp_path, QUESTION)
    assert isinstance(error, TeacherError) and error.status == status
    hint = " (a base_url usually ends in /v1)" if status == 404 else ""
    assert str(error) == f"teacher 'main': status {status}: no such model 'm'{hint}"
    assert (client.usage.requests, client.usage.failed) == (1, 1)


def test_a_redirect_is_not_followed_with_the_key(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.then(reply(b"", 307, Location="http://elsewhere.invalid/v1"))
    error, _ = ask(teacher_server, tmp_path, QUESTION, api_key=KEY)
    assert str(error) == "teacher 'main': redirects to http://elsewhere.invalid/v1; name that address as base_url"


def test_a_server_that_keeps_answering_nothing_is_given_up(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.answer = lambda request: ""
    error, client = ask(teacher_server, tmp_path, QUESTION)
    assert isinstance(error, TeacherError)
    assert str(error) == "teacher 'main': an empty answer (finish_reason 'stop') (5 tries)"
    assert client.usage.requests == 5


def test_an_endless_answer_is_not_read_to_its_end(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.answer = lambda request: "x" * (9 * 2**20)
    error, _ = ask(teacher_server, tmp_path, QUESTION)
    assert isinstance(error, TeacherError) and "more than 8 MiB" in str(error)


def test_an_answer_of_five_megabytes_is_an_answer(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.answer = lambda request: "x" * (5 * 2**20)
    (answer,), _ = ask(teacher_server, tmp_path, QUESTION)
    assert len(answer.text) == 5 * 2**20


def test_an_endpoint_that_is_not_there_is_wrong_input(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.stop()
    error, _ = ask(teacher_server, tmp_path, QUESTION)
    assert isinstance(error, InputError)
    assert str(error).startswith(f"teacher 'main' at {teacher_server.url} does not answer: ")
    assert str(error).endswith("; is the server running?") and "\n" not in str(error)


def test_an_endpoint_that_never_answers_is_wrong_input(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.then(*[hang] * 9)
    error, client = ask(teacher_server, tmp_path, QUESTION, timeout_s=0.1)
    assert isinstance(error, InputError) and "no answer within 0.1 s" in str(error)
    assert client.usage.requests == 3


def test_a_server_that_goes_away_later_fails_the_request_after_many_tries(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.then(reply(completion("A robe.")), *[reset] * 20)
    error, client = ask(teacher_server, tmp_path, QUESTION, (Message("user", "And an obi?"),), first_wait_s=0.001)
    assert isinstance(error, TeacherError) and error.status == 0
    assert client.usage.requests == 1 + 9


def test_a_server_that_is_gone_for_thirty_seconds_costs_no_answer(
    teacher_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it a tenth as long: the outage, and the client's own waits."""
    monkeypatch.setattr(client_module, "LONGEST_WAIT_S", client_module.LONGEST_WAIT_S / 10)
    teacher_server.delay_s = 0.01

    async def run() -> TeacherClient:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        client = TeacherClient(
            name="main", base_urls=[teacher_server.url], model="m", ledger=ledger, parameters={}, first_wait_s=0.05
        )
        async with client:
            await client.ask(QUESTION)
            asked = [asyncio.create_task(client.ask([Message("user", f"{i}?")])) for i in range(300)]
            await asyncio.sleep(0.1)
            await asyncio.to_thread(teacher_server.go_away, 3.0)
            await asyncio.gather(*asked)
        await ledger.close()
        return client

    client = asyncio.run(run())
    assert client.usage.failed == 0 and client.usage.retries >= 16


def test_a_cut_answer_is_asked_again_once_with_twice_the_limit(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.then(reply(completion("A robe which", "length")))
    (answer,), _ = ask(teacher_server, tmp_path, QUESTION)
    assert answer.text == "A good answer."
    assert [request["max_tokens"] for request in teacher_server.requests] == [50, 100]
    (again,), client = ask(teacher_server, tmp_path, QUESTION)
    assert again == answer and client.usage.requests == 0


def test_an_answer_cut_twice_says_so(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.answer = lambda request: completion("A robe which", "length")
    (answer,), client = ask(teacher_server, tmp_path, QUESTION)
    assert answer.finish_reason == "length" and client.usage.requests == 2


def test_no_more_requests_at_once_than_allowed(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.delay_s = 0.02
    teacher_server.then(*[reply(b"", 500)] * 3)

    async def run() -> list[Answer]:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        client = TeacherClient(
            name="main",
            base_urls=[teacher_server.url],
            model="m",
            ledger=ledger,
            parameters={},
            max_concurrency=3,
            first_wait_s=0.01,
        )
        async with client:
            answers = await asyncio.gather(*(client.ask([Message("user", f"{i}?")]) for i in range(20)))
        await ledger.close()
        return answers

    answers = asyncio.run(run())
    assert len({answer.request_key for answer in answers}) == 20
    assert teacher_server.most_at_once == 3


def test_an_address_that_goes_away_leaves_its_work_to_the_others(teacher_server: Any, tmp_path: Path) -> None:
    gone = type(teacher_server)()
    gone.start()

    async def run() -> TeacherClient:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        client = TeacherClient(
            name="main", base_urls=[gone.url, teacher_server.url], model="m", ledger=ledger, parameters={}, max_concurrency=4
        )
        async with client:
            await asyncio.gather(*(client.ask([Message("user", f"{i}?")]) for i in range(20)))
            assert gone.requests and teacher_server.requests
            gone.stop()
            await asyncio.gather(*(client.ask([Message("user", f"{i}!")]) for i in range(40)))
        await ledger.close()
        return client

    began = time.monotonic()
    client = asyncio.run(run())
    assert (client.usage.failed, client.usage.requests - client.usage.retries) == (0, 60)
    assert client.usage.retries <= 12 and time.monotonic() - began < 5


def test_of_several_addresses_one_that_was_never_there_is_no_reason_to_stop(teacher_server: Any, tmp_path: Path) -> None:
    teacher_server.delay_s = 0.3
    nobody = "http://127.0.0.1:9/v1"
    (answer,), client = ask(teacher_server, tmp_path, QUESTION, base_urls=[nobody, teacher_server.url])
    assert answer.text == "A good answer." and client.usage.failed == 0

    teacher_server.stop()
    error, _ = ask(teacher_server, tmp_path, (Message("user", "Another?"),), base_urls=[nobody, teacher_server.url])
    assert isinstance(error, InputError)
    assert str(error).startswith(f"teacher 'main' at {nobody}, {teacher_server.url} does not answer: Cannot connect")


def test_a_server_that_refuses_too_much_at_once_is_asked_for_less_and_answers_everything(
    teacher_server: Any, tmp_path: Path
) -> None:
    at_once = 0

    async def refuse_above_four(request: web.Request) -> web.StreamResponse:
        nonlocal at_once
        at_once += 1
        try:
            if at_once > 4:
                return web.Response(status=429)
            await asyncio.sleep(0.01)
            return web.json_response(completion("A good answer."))
        finally:
            at_once -= 1

    teacher_server.then(*[refuse_above_four] * 10_000)

    async def run() -> TeacherClient:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        client = TeacherClient(
            name="main",
            base_urls=[teacher_server.url],
            model="m",
            ledger=ledger,
            parameters={},
            max_concurrency=64,
            first_wait_s=0.02,
        )
        async with client:
            await asyncio.gather(*(client.ask([Message("user", f"{i}?")]) for i in range(300)))
        await ledger.close()
        return client

    client = asyncio.run(run())
    assert client.usage.failed == 0 and client.usage.retries < 300


def test_a_budget_stops_the_next_request_and_holds_over_runs(teacher_server: Any, tmp_path: Path) -> None:
    questions = [(Message("user", f"{i}?"),) for i in range(5)]
    options = {"prices": (1e6, 2e6), "budget": 3 * (11 + 2 * 7)}
    error, client = ask(teacher_server, tmp_path, *questions, **options)
    assert isinstance(error, BudgetError) and client.usage.requests == 3
    assert str(error) == (
        "teacher 'main': the budget of 75 is spent; the answers are kept: raise teachers.main.budget and run again, "
        "and it goes on from here"
    )
    answers, client = ask(teacher_server, tmp_path, *questions[:3], **options)
    assert len(answers) == 3 and client.usage.requests == 0
    error, client = ask(teacher_server, tmp_path, *questions, **options)
    assert isinstance(error, BudgetError) and client.usage.requests == 0
    answers, client = ask(teacher_server, tmp_path, *questions, **{**options, "budget": 1000})
    assert len(answers) == 5 and client.usage.requests == 2


def test_answers_that_are_thrown_away_are_paid_for(teacher_server: Any, tmp_path: Path) -> None:
    """A model that spends its limit on thoughts gives nothing and costs as much."""
    options = {"prices": (1e6, 2e6), "budget": 2 * (11 + 2 * 7)}
    teacher_server.answer = lambda request: ""
    for requests in (2, 0):  # the second run knows what the first has spent
        error, client = ask(teacher_server, tmp_path, QUESTION, **options)
        assert isinstance(error, BudgetError) and client.usage.requests == requests
        assert client.usage.cost == requests * 25
    teacher_server.answer = lambda request: "A robe."
    answers, _ = ask(teacher_server, tmp_path, QUESTION, **{**options, "budget": 100})
    assert [answer.text for answer in answers] == ["A robe."]


def test_the_key_is_sent_and_shown_nowhere(
    teacher_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    teacher = Teacher(kind="openai", base_url=teacher_server.url, model="m", api_key_env="MY_TEACHER_KEY")
    teacher_server.then(reply(completion("A robe.")), reply({"error": {"message": f"key {KEY} has no credit"}}, 401))
    seen = []

    async def run() -> None:
        async with open_teacher("main", teacher, tmp_path / "ledger.sqlite") as client:
            seen.append(await client.ask(QUESTION))
            seen.extend([repr(client), str(client), client.usage])
            await client.ask([Message("user", "Another?")])

    with pytest.raises(TeacherError) as error:
        asyncio.run(run())
    assert teacher_server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert str(error.value) == "teacher 'main': status 401: key *** has no credit"
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"A robe." in on_disk and KEY.encode() not in on_disk
    assert KEY not in f"{seen} {error.value!r} {caplog.text}"


@pytest.mark.parametrize("wrap", [b"%s", b'{"error": {"message": "%s"}}'], ids=["plain", "JSON"])
@pytest.mark.parametrize(("status", "tries"), [(200, 5), (401, 1), (500, 9)])
def test_no_part_of_the_key_is_left_where_a_message_is_cut(
    teacher_server: Any, tmp_path: Path, status: int, tries: int, wrap: bytes
) -> None:
    for padding in (85, 110, 290):  # the cut falls into the key, which begins after them
        teacher_server.then(*[reply(wrap % (b"x" * padding + KEY.encode() + b" " * 400), status)] * tries)
        error, _ = ask(teacher_server, tmp_path, QUESTION, api_key=KEY, first_wait_s=0.001)
        assert isinstance(error, TeacherError) and "xxx" in str(error) and "sk-" not in str(error)


def test_an_error_message_that_is_not_unicode_can_be_written_down() -> None:
    assert error_message(b'{"error": {"message": "no \\ud83d"}}', redact=str) == "no ?"


@pytest.mark.parametrize(("value", "says"), [(None, "is not set"), ("  ", "is not set"), ("a\nb", "no header can carry")])
def test_a_key_that_is_missing_or_unusable_is_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, says: str
) -> None:
    monkeypatch.delenv("MY_TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_TEACHER_KEY", value)
    teacher = Teacher(kind="openai", base_url="http://127.0.0.1:9/v1", model="m", api_key_env="MY_TEACHER_KEY")

    async def run() -> None:
        async with open_teacher("main", teacher, tmp_path / "ledger.sqlite"):
            pass

    with pytest.raises(InputError, match="MY_TEACHER_KEY") as error:
        asyncio.run(run())
    assert says in str(error.value) and "a\nb" not in str(error.value)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    addresses = ("http://127.0.0.1:8/v1", f"http://me:{KEY}@127.0.0.1:9/v1")
    teacher = Teacher(kind="openai", base_url=addresses, model="m")

    async def run() -> None:
        async with open_teacher("main", teacher, tmp_path / "ledger.sqlite"):
            pass

    with pytest.raises(InputError, match=r"teachers\.main\.base_url holds a user or password") as error:
        asyncio.run(run())
    assert KEY not in str(error.value)
