"""What is generated and kept in the repository is current: docs/cli.md and the data card of the demo."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from flows.recipes import find_recipe, shipped_recipes
from pipeline import build

ROOT = Path(__file__).parents[1]
CARD = ROOT / "data_cards" / "ultralink_mini.md"
# From here on the rows of all sources run together, so the teacher's count too.
SHARED = ("rules", "duplicates", "decontaminate", "prune")


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_page_is_what_help_says() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == tool("write_cli_docs").cli_docs(), "run `make docs`"


def test_every_card_is_linked_and_belongs_to_a_recipe_that_ships() -> None:
    index = (ROOT / "data_cards" / "README.md").read_text("utf-8")
    cards = {path.stem for path in (ROOT / "data_cards").glob("*.md")} - {"README"}
    assert cards == {"ultralink_mini"} <= set(shipped_recipes())
    assert all(f"({card}.md)" in index for card in cards)


# The card. The embedded teacher's answers depend on the machine's arithmetic, and asking for them takes minutes; so the demo is
# built here without the grounded mode, and the card is compared in two parts: every line that the teacher has no part in must be
# the same, and in the rest the numbers must be those of this build plus the teacher's rows.


@pytest.fixture(scope="module")
def card() -> str:
    return CARD.read_text("utf-8")


@pytest.fixture(scope="module")
def card_without_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe = find_recipe("ultralink_mini")
    modes = {code: tuple(mode for mode in given if mode.teacher is None) for code, given in recipe.dialogues.items()}
    assert modes != recipe.dialogues and all(modes.values())
    dataset = build(replace(recipe, dialogues=modes), tmp_path_factory.mktemp("demo") / "dataset")
    return (dataset.path / "README.md").read_text("utf-8")


def what_the_teacher_has_no_part_in(card: str) -> list[str]:
    """The card's lines without those of the teacher's stages, and without the numbers that its rows count in."""
    lines = []
    for line in card.splitlines():
        if re.match(r"\| grounded-", line):
            continue
        if re.match(rf"\| (en_chat_specific|{'|'.join(SHARED)}) \|", line):
            lines.append(line.split("|")[1])
        else:
            lines.append(re.sub(r"\d+", "#", line) if " to train on" in line or " held out" in line else line)
    return lines


def table(card: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading by their first cell."""
    section = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def number(cell: str) -> int:
    return int(cell.partition(" ")[0])


def reasons_in_code() -> set[str]:
    """What is given to `drop`, `pass_over` or `Refused`, stands first in a tuple that is returned, or second in a `Drop`."""
    found = set()
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            told: list[ast.expr] = []
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                told = node.value.elts[:1]
            elif isinstance(node, ast.Tuple) and len(node.elts) == 5 and not isinstance(node.elts[0], ast.Constant):
                told = node.elts[1:2]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
                "drop",
                "pass_over",
                "Refused",
            }:
                told = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "reason")]
            found |= {value.value for value in told if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    return {text for text in found if re.fullmatch(r"[a-z]+(_[a-z]+)*", text)}


def test_every_reason_is_explained_and_every_explained_one_exists():
    page = (ROOT / "docs" / "reasons.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {name for cell in rows for name in re.findall(r"`([a-z_]+)`", cell)}
    code = "\n".join(file.read_text("utf-8") for file in (ROOT / "pipeline").rglob("*.py"))

    assert len(reasons_in_code()) >= 20
    assert reasons_in_code() - explained == set()
    assert [name for name in sorted(explained) if f'"{name}"' not in code and not name.endswith("_in_other_language")] == []


def reasons(cell: str) -> Counter[str]:
    return Counter({reason: int(count) for reason, count in (entry.split() for entry in cell.split(", ") if entry != "–")})


@pytest.mark.slow
def test_the_demos_card_is_current_in_all_that_the_teacher_has_no_part_in(card: str, card_without_teacher: str) -> None:
    assert what_the_teacher_has_no_part_in(card) == what_the_teacher_has_no_part_in(card_without_teacher), "run `make docs`"


@pytest.mark.slow
def test_the_rest_of_the_demos_card_is_that_plus_the_teachers_rows(card: str, card_without_teacher: str) -> None:
    ours, theirs = (table(text, "What left, and why") for text in (card_without_teacher, card))
    more = sum(number(row[1]) for stage, row in theirs.items() if stage.startswith("grounded-"))
    for stage in SHARED:
        assert number(theirs[stage][0]) == number(ours[stage][0]) + more, stage
        assert reasons(theirs[stage][2]) >= reasons(ours[stage][2]), stage
        more = number(theirs[stage][1]) - number(ours[stage][1])
        assert more >= 0, stage
    ours, theirs = (table(text, "Rows") for text in (card_without_teacher, card))
    rows = [sum(number(cell) for cell in table_["en_chat_specific"][:2]) for table_ in (ours, theirs)]
    assert rows[1] == rows[0] + more
    assert number(theirs["en_chat_specific"][2]) >= number(ours["en_chat_specific"][2])
