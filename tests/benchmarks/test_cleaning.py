"""The cleaning benchmark measures what it says: planted pairs, honest recall and precision."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cleaning.py"


@pytest.fixture(scope="module")
def cleaning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cleaning_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    sys.path.append(str(FILE.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_planted_pairs_are_pairs_of_an_original_and_its_copy(cleaning):
    originals = [f"{number} " + "слово text 字 " * 20 + f"{number * 7919}" for number in range(60)]

    texts, pairs = cleaning.planted(originals, 200)

    assert len(texts) == 200 and len(pairs) == 90
    assert len({copy for _, copy in pairs}) == 90
    scores = [cleaning.similarity(texts[original], texts[copy]) for original, copy in pairs]
    assert min(scores) < cleaning.THRESHOLD < max(scores)
    assert cleaning.planted(originals, 200) == (texts, pairs)


def test_our_own_contender_finds_and_names_them(cleaning, tmp_path):
    texts = ["the same long text of a row, said twice", "The same long text  of a row, said twice", "another one altogether"]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": ["0", "1", "2"], "text": texts}), file)

    run = cleaning.measure("glotloom", file)

    assert run["left"] == [(0, [1])]
    assert cleaning.alike(texts[0], texts[1]) and not cleaning.alike(texts[0], texts[2])
