"""From a recipe's `[teachers.NAME]` to a client that can be asked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.recipe import Recipe, Teacher
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.ledger import Ledger
from pipeline.teacher.local import EMBEDDED_MODEL, PARAMETERS, serve_embedded_model


@asynccontextmanager
async def open_teacher(name: str, teacher: Teacher, ledger: Path) -> AsyncIterator[TeacherClient]:
    """The recipe's teacher `name`, embedded or at an endpoint, answering out of and into the ledger file.

    The embedded one is asked greedily and one request per server at a time, whatever temperature and concurrency the recipe
    names.
    """
    async with AsyncExitStack() as stack:
        api_key = read_api_key(name, teacher.api_key_env)
        parameters: dict[str, Any]
        base_urls: tuple[str, ...]
        if teacher.kind == "local":
            base_urls = stack.enter_context(serve_embedded_model(teacher.model or EMBEDDED_MODEL))
            parameters, max_concurrency = PARAMETERS, len(base_urls)
        else:
            if not teacher.base_url:
                raise InputError(f"teachers.{name}.base_url is missing: a teacher of kind 'openai' needs its address")
            base_urls, max_concurrency = teacher.base_urls, teacher.max_concurrency
            if any("@" in urlsplit(url).netloc for url in base_urls):
                raise InputError(f"teachers.{name}.base_url holds a user or password: name a variable in api_key_env instead")
            parameters = {"temperature": teacher.temperature}
        kept = Ledger(ledger)
        stack.push_async_callback(kept.close)
        client = TeacherClient(
            name=name,
            base_urls=base_urls,
            model=model_name(teacher),
            ledger=kept,
            api_key=api_key,
            parameters=parameters,
            max_tokens=teacher.max_tokens,
            max_concurrency=max_concurrency,
            timeout_s=teacher.timeout_s,
            requests_per_minute=teacher.requests_per_minute,
            tokens_per_minute=teacher.tokens_per_minute,
            prices=(teacher.prompt_price, teacher.completion_price),
            budget=teacher.budget,
            small=teacher.kind == "local" and model_name(teacher) == EMBEDDED_MODEL,
        )
        yield await stack.enter_async_context(client)


def model_name(teacher: Teacher) -> str:
    """The model as rows and request keys name it: a file by its name, wherever it lies on this machine."""
    return Path(teacher.model or EMBEDDED_MODEL).name if teacher.kind == "local" else teacher.model


def check_keys(recipe: Recipe, names: Iterable[str]) -> None:
    """InputError, before hours of work, where one of these teachers has no key in its variable."""
    for name in sorted(set(names)):
        read_api_key(name, recipe.teachers[name].api_key_env)


def read_api_key(name: str, variable: str | None) -> str | None:
    """The key in the named environment variable; InputError when it is unset or cannot stand in a header."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"teachers.{name}.api_key_env names {variable}, which is not set: export {variable}=…")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {variable} (teachers.{name}.api_key_env) has characters that no header can carry")
    return key
