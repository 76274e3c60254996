"""What the tests of the pipeline share.

A chat-completions server on loopback that behaves and misbehaves as a test tells it; rows made of a question and an answer,
and a stage run over rows in view; the folder of real data.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from hypothesis import settings

from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import rows_of, step_folder
from pipeline.engine.run import run_step
from pipeline.engine.step import Make, Step, StepReport
from pipeline.rows.sample import SAMPLE_SCHEMA, Message, Sample, Source, sample_from_row, sample_id

# A busy machine is no failure.
settings.register_profile("glotloom", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=3000)  # pytest --hypothesis-profile thorough
settings.load_profile("glotloom")

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(text: object, finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
    }


class ScriptedTeacher:
    """Gives the replies of `script` one after the other, then what `answer` says to the request."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.answer: Callable[[dict[str, Any]], str | dict[str, Any]] = lambda request: "A good answer."
        self.delay_s = 0.0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def go_away(self, seconds: float) -> None:
        """Nobody listens for so long, and who is connected is cut off."""

        async def away() -> None:
            port = self._runner.addresses[0][1]
            await self._runner.cleanup()
            await asyncio.sleep(seconds)
            await self._listen(port)

        asyncio.run_coroutine_threadsafe(away(), self._loop).result()

    def then(self, *replies: Reply) -> None:
        self.script.extend(replies)

    async def _listen(self, port: int) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._reply)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _serve(self) -> None:
        await self._listen(0)
        self._ready.set()
        await self._stop.wait()
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.script:
                return await self.script.pop(0)(request)
            await asyncio.sleep(self.delay_s)
            answer = self.answer(body)
            return web.json_response(completion(answer) if isinstance(answer, str) else answer)
        finally:
            self._at_once -= 1


@pytest.fixture
def teacher_server() -> Iterator[ScriptedTeacher]:
    server = ScriptedTeacher()
    server.start()
    yield server
    server.stop()


class Outcome(NamedTuple):
    """What a stage made of the rows it was given."""

    kept: list[Sample]
    dropped: list[dict[str, Any]]
    report: StepReport

    @property
    def reasons(self) -> dict[str, str]:
        """The source title of each dropped row and why it left."""
        return {row["source"]["title"]: row["reason"] for row in self.dropped}


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """`sample("Why?", "Because.", …)`: question and answer in turn; `title` names the row in its source and its id."""

    def make(
        *turns: str, language: str = "en", task: str = "chat_agnostic", title: str = "row", group: str = "", **rest: Any
    ) -> Sample:
        messages = tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(turns))
        return Sample(
            id=sample_id(language, task, messages, [title]),
            language=language,
            task=task,
            messages=messages,
            mode="pool",
            group_id=group or title,
            source=Source(name="test", title=title),
            **rest,
        )

    return make


@pytest.fixture(scope="session")
def run_over() -> Callable[[Callable[[Step], Step], Sequence[Sample]], Outcome]:
    """Build a step on rows, run it in a work folder of its own, and say what became of the rows."""

    def run(build: Callable[[Step], Step], rows: Sequence[Sample], rows_per_part: int = 3) -> Outcome:
        given = Step(
            name="given", version=1, does=Make(lambda _, context: iter(rows), by_part=False), config={}, schema=SAMPLE_SCHEMA
        )
        with TemporaryDirectory() as folder:
            work = Path(folder)
            run_step(given, work, Processes(1), rows_per_part)
            step = build(given)
            report = run_step(step, work, Processes(1), rows_per_part)
            out = step_folder(step, work)
            return Outcome([sample_from_row(row) for row in rows_of(out)], list(rows_of(out, "dropped")), report)

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (`GLOTLOOM_DATA`, see docs); the test is skipped where there is none."""
    folder = os.environ.get("GLOTLOOM_DATA")
    if not folder:
        pytest.skip("GLOTLOOM_DATA names no folder of real data")
    return Path(folder)
