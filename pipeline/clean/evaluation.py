"""Evaluation sets: their items, and which texts share a stretch with one."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.rows.read import jsonl_rows, parquet_rows
from pipeline.text.scripts import UNSPACED

NGRAM = 10
"""Consecutive words in common that make a text contaminated; twice as many characters of scripts written without spaces."""
_LEAST = 4  # words, or twice as many characters, of an item shorter than that; still shorter ones are not looked for
_SEVERAL, _MANY = 10, 0.02
"""A stretch of more than so many items, and of more than such a share of them, is the set's wording ("Choose the answer …")."""
_UNIT = re.compile(rf"(?=\w)[{UNSPACED}]|[^\W_{UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{UNSPACED}]")
_TEXT_KEYS = ("question", "prompt", "instruction", "problem", "text", "query", "input")


class _WithoutMarks(dict[int, int | None]):
    """For `str.translate`. To a regular expression marks, joiners and soft hyphens are no letters, and would cut words in two."""

    def __missing__(self, point: int) -> int | None:
        kept = None if unicodedata.category(chr(point)) in ("Mn", "Mc", "Cf") else point
        self[point] = kept
        return kept


_WITHOUT_MARKS = _WithoutMarks()


@dataclass(frozen=True)
class Item:
    """`name` is the file and the number of the item in it, from 1."""

    name: str
    text: str

    @property
    def file(self) -> str:
        return self.name.rpartition(":")[0]


@dataclass(frozen=True)
class Shared:
    """A stretch that a text has of an item, and the share of the item's stretches that it has in all."""

    item: Item
    stretch: str
    share: float


def read_sets(paths: Sequence[Path]) -> list[Item]:
    """The items of several sets; those of the same file name are called by as much of their paths as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while length < max(map(len, parts), default=0) and len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return [item for path, part in zip(paths, parts, strict=True) for item in evaluation_items(path, "/".join(part[-length:]))]


def evaluation_items(path: Path, name: str = "") -> Iterator[Item]:
    """The questions of an evaluation set: the first column of a `.tsv`, or the usual text keys of `.jsonl`, `.json`
    (SQuAD's layout too), `.parquet`."""
    number = 0
    for number, text in enumerate(_questions(path), 1):
        yield Item(f"{name or path.name}:{number}", text)
    if not number:
        raise InputError(f"{path}: holds no item; expected an evaluation set")


def _questions(path: Path) -> Iterator[str]:
    if path.suffix == ".tsv":
        try:
            yield from (line.split("\t")[0] for line in path.read_text("utf-8-sig").split("\n") if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        return
    for number, row in enumerate(_rows(path), 1):
        text = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if text is None:
            raise InputError(f"{path}: row {number}: has none of the keys {', '.join(_TEXT_KEYS)}")
        yield text


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet" or path.is_dir():
        return parquet_rows(path, ())
    return _array(path) if path.suffix == ".json" else (row for _, row in jsonl_rows(path))


def _array(path: Path) -> Iterator[dict[str, Any]]:
    """Of a `.json` file the objects of its one array; one with an object a line is read as such."""
    try:
        text = path.read_text("utf-8-sig")
        rows = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair passes as JSON
            json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: is not Unicode: {error.reason}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except ValueError:
        return (row for _, row in jsonl_rows(path))
    if isinstance(rows, dict):
        rows = _of_paragraphs(rows["data"]) if isinstance(rows.get("data"), list) else [rows]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected an array of objects, or an object a line")
    return iter(rows)


def _of_paragraphs(articles: list[Any]) -> list[Any]:
    """The questions of articles laid out as SQuAD's are; other rows as they stand."""
    rows = []
    for article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if isinstance(paragraphs, list):
            rows += [row for paragraph in paragraphs if isinstance(paragraph, dict) for row in paragraph.get("qas") or ()]
        else:
            rows.append(article)
    return rows


class Overlap:
    """Looks for stretches of items in texts; what many items share is looked for only where an item has nothing else."""

    def __init__(self, items: Iterable[Item]) -> None:
        of_items = {item: ngrams(item.text) for item in items}
        counts = Counter(stretch for own in of_items.values() for stretch in own)
        wording = {stretch for stretch, count in counts.items() if count > max(_SEVERAL, _MANY * len(of_items))}
        # First units of a stretch -> its length -> stretch -> items.
        self._by_start: dict[tuple[str, ...], dict[int, dict[str, list[Item]]]] = {}
        self._sizes: dict[Item, int] = {}
        for item, own in of_items.items():
            stretches = own - wording or own
            self._sizes[item] = len(stretches)
            for stretch in sorted(stretches):
                parts = stretch.split(" ")
                by_length = self._by_start.setdefault(tuple(parts[:_LEAST]), {})
                by_length.setdefault(len(parts), {}).setdefault(stretch, []).append(item)
        self._starts = frozenset(self._by_start)

    def find(self, text: str) -> Shared | None:
        """The item of which the text has the greatest share of stretches, with the first of them; of equal ones the first item."""
        units = _units(text)
        windows = [units[offset:] for offset in range(_LEAST)]
        if self._starts.isdisjoint(zip(*windows, strict=False)):  # most texts, at a tenth of the cost
            return None
        found: dict[Item, dict[str, None]] = {}
        for start, window in enumerate(zip(*windows, strict=False)):
            for length, stretches in self._by_start.get(window, {}).items():
                stretch = " ".join(units[start : start + length])
                for item in stretches.get(stretch, ()):
                    found.setdefault(item, {})[stretch] = None
        shared = (Shared(item, next(iter(own)), len(own) / self._sizes[item]) for item, own in found.items())
        return max(shared, key=lambda of: of.share, default=None)


def ngrams(text: str) -> set[str]:
    """The stretches of an item to look for, or the whole of a shorter one; none of one with less than 4 words or 8 characters."""
    units = _units(text)
    times = 2 if 2 * sum(map(bool, map(_IS_UNSPACED.match, units))) > len(units) else 1
    if len(units) < _LEAST * times:
        return set()
    length = min(NGRAM * times, len(units))
    return {" ".join(units[start : start + length]) for start in range(len(units) - length + 1)}


def _units(text: str) -> list[str]:
    """Words, or the characters of scripts without spaces, whatever their case, form and marks."""
    text = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():  # folding takes some letters apart
        text = unicodedata.normalize("NFKC", text).translate(_WITHOUT_MARKS)
    return _UNIT.findall(text)
