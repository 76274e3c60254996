"""Reverse instructions of which a teacher writes the question: the answer stays the source's own, and no row is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build
from pipeline.errors import InputError
from pipeline.recipe import parse_recipe

PAGE = """The Alpha{n} pipes are a bagpipe of the northern valleys, blown with a bellows by the left arm of the player.

== Making ==
The makers of the Alpha{n} turn the chanter from boxwood and bore it with a long drill, which takes them three weeks.

== Playing ==
Players of the Alpha{n} sit while they play, for the bag rests on the knee and closes the lower end of the chanter."""


def written(request: dict[str, Any]) -> str:
    said = str(request["messages"])
    name = re.findall(r"Alpha\d+", said)[0]
    if "boxwood" in said:
        return f"\u201cWhat do the makers of the {name} turn the chanter from?\u201d"
    return f"Why do players of the {name} sit?" if "knee" in said else f"How are the {name} pipes blown?"


class Bench:
    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        server.answer = written
        pages = [{"id": n, "title": f"Alpha{n} pipes", "text": PAGE.format(n=n)} for n in range(4)]
        (folder / "en.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages), "utf-8")

    def build(self, **mode: Any) -> list[Any]:
        recipe = {
            "name": "t",
            "languages": ["en"],
            "knowledge": {"en": {"kind": "jsonl", "path": str(self.folder / "en.jsonl"), "min_tokens": 20}},
            "teachers": {"main": {"kind": "openai", "base_url": self.server.url, "model": "m"}},
            "clean": {"near_duplicate_threshold": 1.0},
            "dialogues": {"en": [{"mode": "reverse", "teacher": "main"} | mode]},
        }
        self.server.requests.clear()
        self.dataset = build(parse_recipe(recipe), self.folder / "out")
        return self.dataset.query("SELECT id, messages, teacher FROM data ORDER BY id")


@pytest.fixture
def bench(tmp_path: Path, teacher_server: Any) -> Bench:
    return Bench(tmp_path, teacher_server)


def turns(rows: list[Any]) -> dict[str, str]:
    """Answer to question."""
    return {a["content"]: q["content"] for _, messages, *_ in rows for q, a in zip(messages[::2], messages[1::2], strict=True)}


def test_the_teacher_asks_what_the_section_answers_and_the_answer_is_the_sections(bench: Bench) -> None:
    asked = turns(bench.build())
    assert len(asked) == 12
    for n in range(4):
        for paragraph in re.sub(r"== \w+ ==\n", "", PAGE.format(n=n)).split("\n\n"):
            assert paragraph in asked
    assert {question.replace(f"Alpha{n}", "X") for n in range(4) for question in asked.values() if f"Alpha{n}" in question} == {
        "How are the X pipes blown?",
        "What do the makers of the X turn the chanter from?",
        "Why do players of the X sit?",
    }


def test_a_question_that_fails_a_gate_gives_way_to_the_templates(bench: Bench) -> None:
    bench.server.answer = lambda request: "What does the text say?"
    asked = turns(bench.build())
    assert len(asked) == 12 and not any("text" in question for question in asked.values())
    assert len(bench.server.requests) == 12


def test_a_teacher_that_fails_a_passage_is_asked_again_by_the_next_run(bench: Bench) -> None:
    bench.server.answer = lambda request: "" if "Alpha2" in str(request["messages"]) else written(request)
    assert len(turns(bench.build())) == 9
    bench.server.answer = written
    assert len(turns(bench.build())) == 12
    assert all("Alpha2" in str(request["messages"]) for request in bench.server.requests)


def test_a_count_is_kept(bench: Bench) -> None:
    assert len(bench.build(count=3)) == 3


def test_the_embedded_teacher_writes_no_instructions(bench: Bench) -> None:
    with pytest.raises(InputError, match="the embedded one cannot write instructions; leave it out to have templates"):
        parse_recipe(
            {
                "name": "t",
                "languages": ["en"],
                "knowledge": {"en": {"kind": "jsonl", "path": "x"}},
                "teachers": {"small": {"kind": "local"}},
                "dialogues": {"en": [{"mode": "reverse", "teacher": "small"}]},
            }
        )


def test_a_share_of_grounded_words_is_no_matter_of_reverse_dialogues() -> None:
    with pytest.raises(InputError, match=r"dialogues\.en\.min_grounded: has no effect with mode 'reverse'"):
        parse_recipe(
            {
                "name": "t",
                "languages": ["en"],
                "knowledge": {"en": {"kind": "jsonl", "path": "x"}},
                "dialogues": {"en": [{"mode": "reverse", "min_grounded": 0.5}]},
            }
        )
