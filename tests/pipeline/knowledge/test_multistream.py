"""Drawn through its index a dump gives what it gives read whole, and only the blocks that are needed are opened."""

import bz2
import json
from pathlib import Path

import pytest

from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import rows_of, step_folder
from pipeline.engine.run import run_step
from pipeline.errors import InputError
from pipeline.knowledge.multistream import DrawnPages, index_of
from pipeline.knowledge.passages import passage_step
from pipeline.recipe import parse_recipe

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11"><siteinfo><sitename>Wikipedia</sitename>'
    "<dbname>enwiki</dbname><base>https://en.example/wiki/Main</base><generator>g</generator><case>first-letter</case>"
    '<namespaces><namespace key="0" case="first-letter" /><namespace key="14" case="first-letter">Category</namespace></namespaces>'
    "</siteinfo>\n"
)
PROSE = "The {name} pipes are the bellows-blown bagpipes of Ireland, and many people have played them for years. "
PAGES, BLOCK = 400, 10


def page(number: int) -> tuple[str, str]:
    """Every third is a redirect, every tenth a category, every seventh too short."""
    title = f"Category:C{number}" if number % 10 == 0 else f"Pipe: {number}"
    text = "#REDIRECT [[Pipe: 1]]" if number % 3 == 0 else PROSE.format(name=f"n{number}") * (1 if number % 7 == 0 else 3)
    xml = (
        f"<page><title>{title}</title><ns>{14 if number % 10 == 0 else 0}</ns><id>{number}</id><revision><id>{number + 9000}</id>"
        f"<timestamp>2020-01-01T00:00:00Z</timestamp><text>{text}</text></revision></page>\n"
    )
    return title, xml


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    """A multistream dump with its index."""
    blocks, lines = [bz2.compress(HEAD.encode())], []
    for start in range(1, PAGES + 1, BLOCK):
        offset = sum(map(len, blocks))
        pages = [page(number) for number in range(start, start + BLOCK)]
        lines += [f"{offset}:{start + place}:{title}\n" for place, (title, _) in enumerate(pages)]
        blocks.append(bz2.compress("".join(xml for _, xml in pages).encode()))
    blocks.append(bz2.compress(b"</mediawiki>"))
    (tmp_path / "enwiki-multistream.xml.bz2").write_bytes(b"".join(blocks))
    (tmp_path / "enwiki-multistream-index.txt.bz2").write_bytes(bz2.compress("".join(lines).encode()))
    return tmp_path


def passages(folder: Path, **knowledge):
    table = {"kind": "wikipedia-dump", "path": str(folder / "enwiki-multistream.xml.bz2"), "min_tokens": 50} | knowledge
    recipe = parse_recipe(
        {"name": "p", "languages": ["en"], "knowledge": {"en": table}, "dialogues": {"en": [{"mode": "reverse"}]}}
    )
    step = passage_step(recipe, "en")
    report = run_step(step, folder / "work", Processes(1), 1000)
    out = step_folder(step, folder / "work")
    return json.dumps(list(rows_of(out)), default=str), list(rows_of(out, "dropped")), report


@pytest.mark.parametrize("wanted", [1, 5, 30, 1000])
def test_the_same_pages_are_drawn_with_the_index_and_without(wiki, wanted):
    with_index, dropped, report = passages(wiki, max_documents=wanted)
    (wiki / "enwiki-multistream-index.txt.bz2").unlink()
    without, dropped_too, report_too = passages(wiki, max_documents=wanted)
    assert with_index == without and len(with_index) > 2
    assert dropped == dropped_too
    assert report.rows_in == report_too.rows_in == PAGES


def test_an_index_may_be_uncompressed(wiki):
    packed = wiki / "enwiki-multistream-index.txt.bz2"
    drawn = passages(wiki, max_documents=3)[0]
    (wiki / "enwiki-multistream-index.txt").write_bytes(bz2.decompress(packed.read_bytes()))
    packed.unlink()
    assert index_of(wiki / "enwiki-multistream.xml.bz2") == wiki / "enwiki-multistream-index.txt"
    assert passages(wiki, max_documents=3)[0] == drawn


def test_only_the_blocks_of_drawn_pages_are_decompressed(wiki, monkeypatch):
    opened = []
    block = DrawnPages._block
    monkeypatch.setattr(DrawnPages, "_block", lambda self, offset: opened.append(offset) or block(self, offset))
    passages(wiki, max_documents=2)
    assert 3 <= len(opened) <= 12 < PAGES / BLOCK


def test_an_index_of_another_dump_is_refused(wiki):
    index = wiki / "enwiki-multistream-index.txt.bz2"
    lines = bz2.decompress(index.read_bytes()).decode()
    index.write_bytes(bz2.compress("".join(f"{line.replace(':', ':9', 1)}\n" for line in lines.splitlines()).encode()))
    with pytest.raises(
        InputError, match=r"page 9\d+ is not at byte \d+ of enwiki-multistream\.xml\.bz2; is it the index of this dump"
    ):
        passages(wiki, max_documents=2)
    index.write_bytes(bz2.compress("".join(f"1{line}\n" for line in lines.splitlines()).encode()))
    with pytest.raises(InputError, match=r"no block begins at byte|is cut off in the block"):
        passages(wiki, max_documents=2)


@pytest.mark.parametrize("content", [b"nonsense\n", bz2.compress(b"12:x:Title\n"), bz2.compress(b"12:1:A\n" * 99)[:-9]])
def test_a_damaged_index_is_refused_by_name(wiki, content):
    (wiki / "enwiki-multistream-index.txt.bz2").write_bytes(content)
    with pytest.raises(
        InputError, match=r"enwiki-multistream-index\.txt\.bz2: (line 1: expected offset:page:title|cannot be read)"
    ):
        passages(wiki, max_documents=2)
