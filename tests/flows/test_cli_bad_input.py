"""Wrong input through the real command: one line that names file, key or row, exit code 2, nothing half-written."""

from __future__ import annotations

import bz2
import json
import re
import shutil
import socket
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from pipeline.rows.sample import SAMPLE_SCHEMA

Glotloom = Callable[..., Result]
Refused = Callable[..., str]
DUMP = Path(str(resources.files("pipeline"))) / "samples" / "knowledge" / "frwiki-sample.xml.bz2"


def the_line(result: Result) -> str:
    """The one line of the error, after whatever progress was told before; everything about it that holds for each of them."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("glotloom: ")] == lines[-1:], result.stderr
    assert all(re.fullmatch(r"[\w-]+: \d+ \w+ in, \d+ \w+ out, \d+ left.*, [\d.]+ s", line) for line in lines[:-1]), result.stderr
    assert result.stdout == ""
    return lines[-1].removeprefix("glotloom: ")


def whole_or_absent(out: Path) -> bool:
    """Nothing stands there but, hidden, stages that are finished and will be used again."""
    if not out.exists():
        return True
    stages = [path for path in (out / ".stages").iterdir() if path.is_dir() and path.name not in {"file-hashes", "teachers"}]
    return {path.name for path in out.iterdir()} == {".stages"} and all((path / "manifest.json").exists() for path in stages)


@pytest.fixture
def refused(tmp_path: Path, small_recipe: str, glotloom: Glotloom) -> Refused:
    """`refused(old, new, …)` replaces pieces of the small recipe, builds it, and returns the one line that refuses it."""

    def build(*pieces: str, options: tuple[str, ...] = ()) -> str:
        text = small_recipe
        for old, new in zip(pieces[::2], pieces[1::2], strict=True):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "small.toml").write_text(text, "utf-8")
        out = tmp_path / "dataset"
        line = the_line(glotloom("build", tmp_path / "small.toml", "--out", out, *options))
        assert whole_or_absent(out), sorted(out.rglob("*"))
        return line.replace(f"{tmp_path}/", "")

    return build


# The recipe


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("min_tokens = 100", "min_tokns = 100", "small.toml: knowledge.fr.min_tokns: unknown key; did you mean 'min_tokens'?"),
        ('name = "small"', 'name = "small"\nlangauges = ["fr"]', "small.toml: langauges: unknown key; did you mean 'languages'?"),
        (
            '["fr", "en"]',
            '["fr", "en", "xx"]',
            "small.toml: languages: 'xx' is not known; there are ar, de, en, es, fr, hi, ja, pt, ru, sw, uk, zh",
        ),
        ("min_tokens = 100", "min_tokens = -5", "small.toml: knowledge.fr.min_tokens = -5: should be greater than or equal to 1"),
        ("min_tokens = 100", 'min_tokens = "many"', "small.toml: knowledge.fr.min_tokens = 'many': should be a valid integer"),
        ("min_tokens = 100", "min_tokens = 90000", "small.toml: knowledge.fr.min_tokens = 90000: is more than max_tokens = 10000"),
        ("fr = 5", "fr = -5", "small.toml: agnostic.math.budget.fr"),
        ('name = "small"', 'name = "small', "recipe small.toml: not valid TOML"),
        ('mode = "reverse"', 'mode = "grounded"', "small.toml: dialogues.fr: mode 'grounded' needs a teacher"),
    ],
)
def test_a_recipe_is_refused_by_its_key(refused: Refused, tmp_path: Path, old: str, new: str, told: str) -> None:
    assert refused(old, new).startswith(told)
    assert not (tmp_path / "dataset").exists()


def test_a_recipe_of_invalid_utf8_is_refused(tmp_path: Path, glotloom: Glotloom) -> None:
    (tmp_path / "small.toml").write_bytes(b'name = "\xff"')
    line = the_line(glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset"))
    assert line.startswith(f"recipe {tmp_path / 'small.toml'}: not valid TOML: 'utf-8' codec can't decode byte 0xff")


def test_a_recipe_that_does_not_exist_is_told_what_there_is(tmp_path: Path, glotloom: Glotloom) -> None:
    line = the_line(glotloom("build", "ultralink_mimi", "--out", tmp_path / "dataset"))
    assert line.startswith("recipe ultralink_mimi: does not exist; give a TOML file or one of ultralink_full, ultralink_mini")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("clean.near=3", "small.toml: clean.near: unknown key"),
        ("clean", "--set clean: expected KEY=VALUE"),
        ("languages.0=fr", "--set languages.0=fr: languages is a list or a value"),
        ("clean.near_duplicate_threshold=1.5", "small.toml: clean.near_duplicate_threshold = 1.5"),
    ],
)
def test_an_override_is_refused_like_a_key(refused: Refused, override: str, told: str) -> None:
    assert refused(options=("--set", override)).startswith(told)


# Knowledge


def test_a_missing_dump_is_refused_before_anything_is_written(refused: Refused, tmp_path: Path) -> None:
    assert refused("sample:knowledge/frwiki-sample.xml.bz2", "nowhere.xml.bz2") == "nowhere.xml.bz2: does not exist"
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("wiki.xml", b"", "is empty"),
        ("wiki.xml.bz2", bz2.compress(b""), "is empty"),
        ("wiki.xml.bz2", DUMP.read_bytes()[:9000], "is cut off (the compressed stream ends early); fetch it again"),
        ("wiki.xml", bz2.decompress(DUMP.read_bytes())[:30_000], "is not a whole MediaWiki XML dump"),
        ("wiki.xml", b"Il pleut sur la ville.\n", "is not a whole MediaWiki XML dump"),
        ("wiki.xml", b"<html><body>Il pleut sur la ville.</body></html>", "is not a whole MediaWiki XML dump"),
        ("wiki.xml", bz2.decompress(DUMP.read_bytes()).replace("é".encode(), b"\xe9"), "is not "),
    ],
    ids=["empty", "empty stream", "cut-off stream", "cut-off XML", "no XML", "other XML", "invalid UTF-8"],
)
def test_a_damaged_dump_is_refused_by_name(refused: Refused, tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused("sample:knowledge/frwiki-sample.xml.bz2", name).startswith(f"{name}: {told}")
    assert not (tmp_path / "dataset").exists()


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_a_page_without_text_leaves_with_that_reason(tmp_path: Path, small_recipe: str, glotloom: Glotloom) -> None:
    prose = "La ville de Rennes est la capitale de la Bretagne, et son marché se tient chaque samedi place des Lices. " * 8
    jsonl(tmp_path / "pages.jsonl", {"id": "1", "title": "Vide", "text": "\n "}, {"id": "2", "title": "Rennes", "text": prose})
    recipe = small_recipe.replace("sample:knowledge/frwiki-sample.xml.bz2", "pages.jsonl").replace("wikipedia-dump", "jsonl")
    (tmp_path / "small.toml").write_text(recipe)
    assert glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset").exit_code == 0
    told = glotloom("explain", tmp_path / "dataset", "pages-1")
    assert "dropped by passages-fr: page_without_text" in told.stdout


def test_a_source_of_nothing_but_empty_pages_is_refused(refused: Refused, tmp_path: Path) -> None:
    jsonl(tmp_path / "pages.jsonl", {"id": "1", "title": "Vide", "text": ""}, {"id": "2", "title": "Vide aussi", "text": " "})
    line = refused("sample:knowledge/frwiki-sample.xml.bz2", "pages.jsonl", "wikipedia-dump", "jsonl")
    limits = "documents of 100 (min_tokens) to 10000 (max_tokens) estimated tokens are taken"
    assert line == f"pages.jsonl: gives no passage for 'fr': page_without_text 2; {limits}"


def test_a_line_of_invalid_utf8_is_refused_by_its_number(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_bytes(b'{"title": "Rennes", "text": "ville"}\n{"title": "Rennes", "text": "\xe9"}\n')
    line = refused("sample:knowledge/frwiki-sample.xml.bz2", "pages.jsonl", "wikipedia-dump", "jsonl")
    assert line.startswith("pages.jsonl: line 2: is not UTF-8")


def test_a_text_of_invalid_utf8_is_refused_by_name(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "ville.txt").write_bytes(b"Une ville \xe9trange")
    assert refused("sample:knowledge/frwiki-sample.xml.bz2", "ville.txt", "wikipedia-dump", "text").startswith(
        "ville.txt: is not UTF-8"
    )


def test_parquet_without_a_column_is_refused_by_the_column(refused: Refused, tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["Rennes"], "body": ["Une ville."]}), tmp_path / "pages.parquet")
    line = refused("sample:knowledge/frwiki-sample.xml.bz2", "pages.parquet", "wikipedia-dump", "parquet")
    assert line == "pages.parquet: lacks the column 'text'; it has title, body"


def test_parquet_that_is_none_is_refused_by_name(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "pages.parquet").write_text("title,text\n")
    line = refused("sample:knowledge/frwiki-sample.xml.bz2", "pages.parquet", "wikipedia-dump", "parquet")
    assert line.startswith("pages.parquet: is not Parquet")


# Pools and evaluation sets


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"question": "2 + 2 ?", "answer": "4"}\n{"question": \n', "pool.jsonl: line 2: is not JSON"),
        (b"[1, 2]\n", "pool.jsonl: line 1: is not a JSON object"),
        (b'{"question": "\xe9"}\n', "pool.jsonl: line 1: is not UTF-8"),
        (b'{"question": "2 + 2 ?"}\n', "pool.jsonl: gives no row for 'math': row_without_messages 1; a row needs"),
    ],
    ids=["half a line", "a list", "invalid UTF-8", "no answer"],
)
def test_a_bad_pool_is_refused_by_file_and_line(refused: Refused, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "pool.jsonl").write_bytes(content)
    assert refused("sample:agnostic/math.jsonl", "pool.jsonl").startswith(told)


def test_an_evaluation_set_without_questions_is_refused_by_row(refused: Refused, tmp_path: Path) -> None:
    jsonl(tmp_path / "exam.jsonl", {"question": "How much is two and two?"}, {"answer": "4"})
    line = refused(options=("--set", 'clean.evaluation_sets=["exam.jsonl"]'))
    assert line.startswith("exam.jsonl: row 2: has none of the keys question, ")


def test_rules_that_leave_no_row_are_told_by_their_reasons(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def rule(sample): return 'bad_day', ''\n")
    line = refused(options=("--set", 'clean.rules=["own.py:rule"]'))
    assert line.startswith("small: no row is left to publish; most left at rules (bad_day 71), pool-math (language_not_wanted ")


# A rule of the user's own


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, "clean.rules: own.py: does not exist"),
        ("def rule(sample:\n", "clean.rules: own.py: does not load: SyntaxError"),
        ("def other(sample): return None\n", "clean.rules: own.py: has no function 'rule'"),
        ("def rule(sample): return sample.nothing\n", "own.py:rule: fails on row "),
        ("def rule(sample): return 'too_long'\n", "own.py:rule: returned 'too_long' for row "),
    ],
    ids=["no file", "no Python", "no function", "fails", "returns no pair"],
)
def test_a_rule_of_ones_own_is_refused_by_file_and_function(refused: Refused, tmp_path: Path, code: str | None, told: str) -> None:
    if code is not None:
        (tmp_path / "own.py").write_text(code)
    assert refused(options=("--set", 'clean.rules=["own.py:rule"]')).startswith(told)


# Teachers


def test_a_teacher_that_does_not_answer_is_refused_by_name_and_address(refused: Refused) -> None:
    with socket.socket() as taken:  # bound and not listening: the port is nobody else's, and refuses
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        teacher = f'\n[teachers.main]\nkind = "openai"\nbase_url = "{address}"\nmodel = "m"\n'
        line = refused('mode = "reverse"', f'mode = "grounded"\nteacher = "main"\n{teacher}')
    assert line.startswith(f"teacher 'main' at {address} does not answer: ")


def test_a_teachers_key_that_is_not_set_is_refused_by_its_variable(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOTLOOM_TEST_KEY", raising=False)
    teacher = (
        '\n[teachers.main]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\napi_key_env = "GLOTLOOM_TEST_KEY"\n'
    )
    line = refused('mode = "reverse"', f'mode = "grounded"\nteacher = "main"\n{teacher}')
    assert line.startswith("teachers.main.api_key_env names GLOTLOOM_TEST_KEY, which is not set")


# Folders


def test_an_output_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path, glotloom: Glotloom) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    line = the_line(glotloom("build", "ultralink_mini", "--out", tmp_path / "thesis"))
    assert line.startswith(f"{tmp_path / 'thesis'}: holds something else (chapter.txt)")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, glotloom: Glotloom) -> None:
    (tmp_path / "thesis").write_text("years of work")
    assert "is a file" in the_line(glotloom("build", "ultralink_mini", "--out", tmp_path / "thesis"))
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_the_demo_refuses_a_folder_that_holds_something_else(tmp_path: Path, glotloom: Glotloom) -> None:
    (tmp_path / "chapter.txt").write_text("years of work")
    assert "holds something else (chapter.txt)" in the_line(glotloom("demo", "--out", tmp_path))


def test_a_work_folder_in_use_is_refused(tmp_path: Path, small_recipe: str, glotloom: Glotloom) -> None:
    from pipeline.files import WorkLock

    (tmp_path / "small.toml").write_text(small_recipe)
    with WorkLock(tmp_path / "work"):
        line = the_line(glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset", "--work", tmp_path / "work"))
    assert line.startswith(f"{tmp_path / 'work'}: another build is at work here")
    assert (tmp_path / "work" / ".lock").exists()


@pytest.mark.parametrize(
    "command", [("export", "--format", "hf", "--out", "new"), ("explain", "x"), ("report",)], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "dataset: does not exist"),
        (lambda folder: (folder / "manifest.json").unlink(), "dataset: has no manifest.json: its build was not finished"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "dataset/manifest.json: is not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "dataset: is not a glotloom dataset"),
        (lambda folder: (folder / "data/fr_math/train-00000.parquet").unlink(), "dataset: lacks data/fr_math/train-00000.parquet"),
        (
            lambda folder: cut(folder / "data/fr_math/train-00000.parquet"),
            "dataset/data/fr_math/train-00000.parquet: is not Parquet",
        ),
        (
            lambda folder: without(folder / "data/fr_math/train-00000.parquet", "messages"),
            "dataset/data/fr_math/train-00000.parquet: lacks the column 'messages'",
        ),
    ],
    ids=["absent", "no manifest", "half a manifest", "other manifest", "shard gone", "shard cut off", "column gone"],
)
def test_a_dataset_folder_that_is_not_whole_is_refused(
    small_dataset: Path,
    tmp_path: Path,
    glotloom: Glotloom,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    damage: Callable[[Path], object],
    told: str,
) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns(".stages"))
    damage(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert the_line(glotloom(command[0], "dataset", *command[1:])).startswith(told)
    assert sorted(tmp_path.rglob("*")) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


def test_the_next_build_mends_a_damaged_dataset(small_dataset: Path, tmp_path: Path, small_recipe: str, glotloom: Glotloom) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset")
    cut(tmp_path / "dataset/data/fr_math/train-00000.parquet")
    (tmp_path / "small.toml").write_text(small_recipe)
    assert glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset").exit_code == 0
    mended, whole = (folder / "data/fr_math/train-00000.parquet" for folder in (tmp_path / "dataset", small_dataset))
    assert mended.read_bytes() == whole.read_bytes()


def test_refused_input_leaves_the_dataset_that_stood_there_whole(
    small_dataset: Path, tmp_path: Path, small_recipe: str, glotloom: Glotloom
) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset")
    before = {
        path: path.read_bytes() for path in (tmp_path / "dataset").rglob("*") if path.is_file() and ".stages" not in path.parts
    }
    (tmp_path / "wiki.xml.bz2").write_bytes(DUMP.read_bytes()[:9000])
    (tmp_path / "small.toml").write_text(small_recipe.replace("sample:knowledge/frwiki-sample.xml.bz2", "wiki.xml.bz2"))
    the_line(glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset"))
    (tmp_path / "small.toml").write_text(small_recipe)
    (tmp_path / "own.py").write_text("def rule(sample): return 'bad_day', ''\n")  # found out as late as can be
    options = ("--set", 'clean.rules=["own.py:rule"]')
    the_line(glotloom("build", tmp_path / "small.toml", "--out", tmp_path / "dataset", *options))
    assert before == {p: p.read_bytes() for p in (tmp_path / "dataset").rglob("*") if p.is_file() and ".stages" not in p.parts}
    assert glotloom("report", tmp_path / "dataset").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("explain", "DATASET", "zzz"), "no row, passage or page has the id 'zzz'"),
        (("explain", "DATASET", ""), "no row, passage or page has the id ''"),
        (("export", "DATASET", "--format", "hf", "--out", "taken"), "taken: is not empty; choose a new folder for the export"),
        (("report", "DATASET", "--out", "taken"), "taken: is a folder"),
        (("report", "DATASET", "--adapter", "taken"), "taken: has no readable training.json; is it an adapter that"),
        (("report", "DATASET", "--adapter", "lora"), "lora/training.json: is not the record of a MALoRA training"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    small_dataset: Path,
    tmp_path: Path,
    glotloom: Glotloom,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/adapter_config.json").write_text('{"peft_type": "LORA"}')
    Path("lora").mkdir()
    Path("lora/training.json").write_text('{"peft_type": "LORA"}')
    line = the_line(glotloom(*(str(small_dataset) if argument == "DATASET" else argument for argument in arguments)))
    assert line.replace(f"{small_dataset}: ", "").startswith(told)
    assert [path.name for path in Path("taken").iterdir()] == ["adapter_config.json"]


# Training (reading the wrong data is malora's to test; here is the command's way of telling it)


def test_training_on_an_unfinished_dataset_is_refused(small_dataset: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    shutil.copytree(small_dataset / "data", tmp_path / "dataset" / "data")
    line = the_line(glotloom("train", "ultralink_mini", "--data", tmp_path / "dataset", "--out", tmp_path / "adapter"))
    assert line.startswith(f"{tmp_path / 'dataset'}") and "manifest.json" in line
    assert not (tmp_path / "adapter").exists()


def test_training_on_parquet_without_messages_is_refused(tmp_path: Path, glotloom: Glotloom) -> None:
    empty = SAMPLE_SCHEMA.empty_table().drop_columns(["messages"])
    pq.write_table(empty, tmp_path / "rows.parquet")
    places = ("--data", tmp_path / "rows.parquet", "--out", tmp_path / "adapter")
    line = the_line(glotloom("train", "ultralink_mini", *places))
    assert "rows.parquet" in line and "messages" in line
    assert not (tmp_path / "adapter").exists()


def test_training_into_a_folder_that_holds_something_else_is_refused(
    small_dataset: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    line = the_line(glotloom("train", "ultralink_mini", "--data", small_dataset, "--out", tmp_path / "thesis"))
    assert str(tmp_path / "thesis") in line
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_training_key_out_of_range_is_refused(small_dataset: Path, tmp_path: Path, glotloom: Glotloom) -> None:
    options = ("--set", "training.num_experts=2", "--set", "training.top_k=3")
    line = the_line(glotloom("train", "ultralink_mini", "--data", small_dataset, "--out", tmp_path / "adapter", *options))
    assert "top_k = 3" in line
    assert not (tmp_path / "adapter").exists()
