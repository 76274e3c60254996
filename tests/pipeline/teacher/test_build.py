"""What a build asks a teacher after a change: what the change touches, and nothing else."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build
from pipeline.recipe import parse_recipe

FACTS = {
    "en": [
        ("Why is the outside of the {name} cake crisp?", "The outside of the {name} cake is crisp because meringue dries slowly."),
        ("Who brought the {name} cake to Georgia?", "The {name} cake was brought to Georgia by the baker Anna Smith."),
        ("When do families share the {name} cake?", "Families share the {name} cake at weddings every summer."),
        ("What colour is the {name} cream?", "The {name} cream has the pale colour of fresh butter."),
        ("How is the {name} pan cleaned?", "The {name} pan is cleaned with coarse salt and vinegar."),
        ("Where does the {name} flour grow?", "The {name} flour grows on terraces above the northern lake."),
    ],
    "fr": [
        (
            "Pourquoi la croûte du gâteau {name} est-elle dure ?",
            "La croûte du gâteau {name} est dure car la meringue sèche lentement.",
        ),
        ("Qui a apporté le gâteau {name} en Géorgie ?", "Le gâteau {name} a été apporté en Géorgie par la boulangère Anne Martin."),
        ("Quand partage-t-on le gâteau {name} en famille ?", "On partage le gâteau {name} en famille pendant les mariages d'été."),
        ("De quelle couleur est la crème {name} ?", "La crème {name} a la couleur pâle du beurre frais."),
        ("Comment nettoie-t-on le moule {name} ?", "On nettoie le moule {name} avec du gros sel et du vinaigre."),
        ("Où pousse la farine {name} ?", "La farine {name} pousse sur les terrasses au-dessus du lac."),
    ],
}
NAMES = ["Ambera", "Belora", "Cindara", "Dorvena", "Elmira", "Fandora"]


def obedient(request: dict[str, Any]) -> str | dict[str, Any]:
    """Asks for the next fact of the passage, in its language, and answers truly."""
    said = str([message["content"] for message in request["messages"]])
    language = "fr" if "gâteau" in said else "en"
    name = next(name for name in re.findall(r"[A-Z]\w+", said) if name in NAMES)
    facts = {question.format(name=name): answer.format(name=name) for question, answer in FACTS[language]}
    last = request["messages"][-1]["content"]
    if len(asked := [question for question in facts if question in last]) == 1 and not re.search("dialog", last):
        return facts[asked[0]]
    return next(question for question in facts if question not in said)


class Bench:
    """A recipe over two files of pages, built again and again in one folder."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        self.pages = {code: list(NAMES[:4]) for code in FACTS}
        self.extra = ""
        server.answer = obedient

    def build(self, one: bool = False, **teachers: dict[str, Any]) -> set[str]:
        """The names whose passages were asked about; each language has a teacher of its own, or `one` asks in both."""
        asks = dict.fromkeys(FACTS, "main") if one else {code: code for code in FACTS}
        for code, names in self.pages.items():
            rows = [
                {
                    "id": name,
                    "title": f"{'Gâteau' if code == 'fr' else 'Cake'} {name}",
                    "text": " ".join(answer.format(name=name) for _, answer in FACTS[code])
                    + (self.extra if name == NAMES[0] else ""),
                }
                for name in names
            ]
            (self.folder / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        common = {"kind": "openai", "base_url": self.server.url, "model": "m", "temperature": 0.0}
        recipe = {
            "name": "t",
            "languages": list(FACTS),
            "knowledge": {code: {"kind": "jsonl", "path": str(self.folder / f"{code}.jsonl"), "min_tokens": 20} for code in FACTS},
            "teachers": {name: common | teachers.get(name, {}) for name in asks.values()},
            "clean": {"near_duplicate_threshold": 1.0},
            "dialogues": {code: [{"mode": "grounded", "teacher": asks[code]}] for code in FACTS},
        }
        self.server.requests.clear()
        self.dataset = build(parse_recipe(recipe), self.folder / "out")
        return {f"{r['model']} {name}" for r in self.server.requests for name in NAMES if name in str(r["messages"])}

    @property
    def rows(self) -> list[Any]:
        return self.dataset.query("SELECT id, language, teacher, messages FROM data ORDER BY id")


@pytest.fixture
def bench(tmp_path, teacher_server) -> Bench:
    return Bench(tmp_path, teacher_server)


def test_the_same_again_asks_nothing_and_gives_the_same_bytes(bench):
    assert len(bench.build()) == 4
    rows = bench.rows
    assert len(rows) == 8 and {language for _, language, *_ in rows} == {"en", "fr"}
    assert bench.build() == set() and bench.rows == rows
    used = json.loads((bench.folder / "out/usage.json").read_text())["grounded-en"]
    assert (used["teacher"], used["failed"], used["retries"]) == ("en", 0, 0) and used["requests"] > 8


def test_a_page_more_and_a_page_edited_ask_for_theirs_alone(bench):
    bench.build()
    bench.pages["en"].append(NAMES[4])
    assert bench.build() == {f"m {NAMES[4]}"}
    bench.extra = " It is old."
    assert bench.build() == {f"m {NAMES[0]}"}
    bench.extra = ""
    assert bench.build() == set()


def test_another_model_for_one_language_asks_for_that_one_and_taken_back_for_nothing(bench):
    bench.build()
    rows = bench.rows
    assert {asked.split()[0] for asked in bench.build(fr={"model": "other"})} == {"other"}
    assert {(language, teacher) for _, language, teacher, _ in bench.rows} == {("en", "m"), ("fr", "other")}
    assert bench.build() == set() and bench.rows == rows


def test_a_larger_limit_asks_again_for_what_was_cut_off_alone(bench, teacher_server):
    def cut(request: dict[str, Any]) -> str | dict[str, Any]:
        text = obedient(request)
        long = NAMES[1] in str(request["messages"]) and request["max_tokens"] <= 100
        return {"choices": [{"finish_reason": "length" if long else "stop", "message": {"content": text}}]}

    teacher_server.answer = cut
    bench.build(en={"max_tokens": 50}, fr={"max_tokens": 50})
    assert bench.build(en={"max_tokens": 400}, fr={"max_tokens": 50}) == {f"m {NAMES[1]}"}


def test_both_languages_are_asked_at_the_same_time(bench, teacher_server):
    teacher_server.delay_s = 0.02
    bench.build()

    asked = ["fr" if "gâteau" in str(request["messages"]) else "en" for request in teacher_server.requests]
    turns = sum(one != other for one, other in itertools.pairwise(asked))
    assert set(asked) == {"en", "fr"}
    assert turns > 4, asked


def test_languages_of_one_teacher_share_its_slots(bench, teacher_server):
    teacher_server.delay_s = 0.02
    bench.build(one=True, main={"max_concurrency": 3})

    asked = ["fr" if "gâteau" in str(request["messages"]) else "en" for request in teacher_server.requests]
    assert sum(one != other for one, other in itertools.pairwise(asked)) > 4, asked
    assert teacher_server.most_at_once == 3
    usage = json.loads((bench.folder / "out/usage.json").read_text())
    assert {name: own["teacher"] for name, own in usage.items()} == {"grounded-en": "main", "grounded-fr": "main"}
    assert sum(own["requests"] for own in usage.values()) == len(asked)
    assert {name: own["requests"] for name, own in usage.items()} == {f"grounded-{c}": asked.count(c) for c in ("en", "fr")}
