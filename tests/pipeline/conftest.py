"""A chat-completions server on loopback that behaves and misbehaves as a test tells it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

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

    def then(self, *replies: Reply) -> None:
        self.script.extend(replies)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._reply)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

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
