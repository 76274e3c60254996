"""The build benchmark plants what it says, and its translations are translations."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "build.py"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_pool_has_its_shares_of_languages_and_of_every_kind(build):
    rows = list(build.pool_rows(4_000, 7, ["What is it?"] * 250))

    assert Counter(row[2] for row, _, _ in rows) == {"en": 2_800, "fr": 300, "es": 300, "ru": 300, "zh": 300}
    kinds = Counter(kind for _, kind, _ in rows)
    assert (kinds["exact"], kinds["near"], kinds["number"], kinds["contaminated"]) == (80, 200, 12, 4)
    assert len({row[0] for row, _, _ in rows}) == 4_000
    assert list(build.pool_rows(4_000, 7, ["What is it?"] * 250)) == rows


def test_copies_are_copies_and_translations_keep_the_numbers_but_for_those_planted(build):
    rows = list(build.pool_rows(4_000, 7, ["What is it?"] * 250))
    texts = {row[0]: (row[3], row[4]) for row, _, _ in rows}
    english = {row[1]: texts[row[0]] for row, _, _ in rows if row[2] == "en"}

    for row, kind, partner in rows:
        if kind in ("exact", "near"):
            assert (texts[row[0]] == texts[partner]) == (kind == "exact")
        if row[2] != "en":
            assert (_numbers(texts[row[0]]) == _numbers(english[row[1]])) == (kind != "number"), row


def _numbers(texts: tuple[str, str]) -> list[list[str]]:
    return [sorted(re.findall(r"\d+", text)) for text in texts]


def test_a_copy_counts_as_found_when_its_original_is_dropped_for_it(build, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "dropped").mkdir()
    dropped = [("a", "exact_duplicate"), ("c", "over_budget"), ("d", "answer_breaks_off")]
    table = pa.table({"source": [{"title": row} for row, _ in dropped], "reason": [reason for _, reason in dropped]})
    pq.write_table(table, tmp_path / "dropped" / "part-00000.parquet")
    (tmp_path / "planted.tsv").write_text("b\texact\ta\nc\tnumber\t\n")

    found = build.outcome(tmp_path / "planted.tsv", tmp_path)

    assert found["planted"]["exact"] == [1, 1] and found["planted"]["number"] == [0, 1]
    assert found["not_found"] == {"number: over_budget": 1}
    assert found["unplanted_dropped"] == {"answer_breaks_off": 1}


def test_the_share_of_busy_slots_is_over_the_time_between_first_and_last_request(build):
    changes = [(10.0, 1)] * build.SLOTS + [(15.0, -1)] * build.SLOTS + [(19.0, 1), (20.0, -1)]

    assert build.busy_share(changes, 0, 0.5) == 1.0
    assert build.busy_share(changes, 0.5, 0.9) == 0.0
