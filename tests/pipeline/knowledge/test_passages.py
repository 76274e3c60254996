import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import rows_of, step_folder
from pipeline.engine.run import run_step
from pipeline.errors import InputError
from pipeline.knowledge import passages as module
from pipeline.knowledge import records
from pipeline.knowledge.passages import _keyword_fault, passage_step, segments
from pipeline.recipe import Knowledge, parse_recipe
from pipeline.rows.sample import Section, passage_from_row
from pipeline.text.tokens import estimate_tokens

PROSE = "The uilleann pipes are the bellows-blown bagpipes of Ireland, and many people play them. "


def recipe(path: Path, language: str = "en", **knowledge):
    table = {"kind": "jsonl", "path": str(path), "min_tokens": 10, "max_tokens": 1000, "segment_tokens": 200} | knowledge
    return parse_recipe(
        {"name": "p", "languages": [language], "knowledge": {language: table}, "dialogues": {language: [{"mode": "reverse"}]}}
    )


@pytest.fixture
def run(tmp_path):
    """Documents (`title: text`) through the passages step: its passages, its drops and its report."""

    def run(texts: dict[str, str], language: str = "en", count: int = 1, **knowledge):
        path = tmp_path / "docs.jsonl"
        path.write_text("".join(json.dumps({"id": t, "title": t, "text": x}) + "\n" for t, x in texts.items()), "utf-8")
        step = passage_step(recipe(path, language, **knowledge), language)
        with Processes(count) as processes:
            report = run_step(step, tmp_path / "work", processes, 1000)
        folder = step_folder(step, tmp_path / "work")
        return [passage_from_row(row) for row in rows_of(folder)], list(rows_of(folder, "dropped")), report

    return run


WORDS = st.text(st.sampled_from("abc дё 字。.!?:\n"), min_size=1, max_size=60).map(str.strip).filter(bool)
PARAGRAPHS = st.lists(WORDS.map(lambda text: text.replace("\n\n", "\n")), min_size=1, max_size=5)
SECTIONS = st.lists(st.builds(Section, st.sampled_from(["", "A", "B"]), PARAGRAPHS.map("\n\n".join)), max_size=5)


def characters(sections):
    """Heading and visible character, one after the other."""
    return [(section.heading, character) for section in sections for character in "".join(section.text.split())]


@given(SECTIONS, st.integers(1, 40))
def test_segments_lose_no_character_and_keep_order_and_headings(sections, limit):
    cut = segments(sections, limit)

    assert characters(section for segment in cut for section in segment) == characters(sections)
    assert all(segment and all(section.text.strip() for section in segment) for segment in cut)


@given(SECTIONS, st.integers(1, 40))
def test_a_segment_over_the_limit_is_one_sentence_or_has_the_short_end_of_the_document(sections, limit):
    cut = segments(sections, limit)

    for number, segment in enumerate(cut):
        tokens = sum(estimate_tokens(part) for section in segment for part in section.text.split("\n\n"))
        one_piece = len(segment) == 1 and "\n\n" not in segment[0].text
        is_last = number == len(cut) - 1
        assert tokens <= limit or one_piece or is_last


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(10, 40))
def test_no_segment_but_a_lone_one_is_shorter_than_half(lengths, limit):
    sections = [Section("", "\n\n".join("字" * round(n / 0.56) for n in lengths))]

    cut = segments(sections, limit)

    last = sum(estimate_tokens(part) for section in cut[-1] for part in section.text.split("\n\n"))
    assert len(cut) == 1 or last >= limit / 2


def test_a_section_over_a_segments_end_goes_on_under_its_heading():
    text = "\n\n".join(["字" * 100] * 4)  # 56 tokens each

    assert [[(s.heading, s.text.count("\n\n")) for s in segment] for segment in segments([Section("H", text)], 120)] == [
        [("H", 1)],
        [("H", 1)],
    ]


def test_a_paragraph_longer_than_a_segment_is_cut_at_sentence_ends():
    paragraph = "One two three four five. Six seven eight! Nine ten eleven? Twelve."

    cut = segments([Section("", paragraph)], 7)

    assert [segment[0].text for segment in cut] == ["One two three four five.", "Six seven eight!", "Nine ten eleven? Twelve."]


def test_a_chinese_paragraph_is_cut_at_its_stops():
    cut = segments([Section("", "一二三四五六七八九十。甲乙丙丁戊己庚辛壬癸！")], 7)

    assert [segment[0].text for segment in cut] == ["一二三四五六七八九十。", "甲乙丙丁戊己庚辛壬癸！"]


def test_a_document_becomes_passages_that_know_where_they_are_from(run):
    (first, second), _, report = run({"Uilleann pipes": (PROSE * 6 + "\n\n") * 2}, licence="CC0 1.0")

    assert (first.id, second.id) == ("docs-Uilleann pipes-0", "docs-Uilleann pipes-1")
    assert (first.document_id, second.position) == ("docs-Uilleann pipes", 1)
    assert (first.source.title, first.source.licence, first.language) == ("Uilleann pipes", "CC0 1.0", "en")
    assert (report.rows_in, report.rows_used, report.rows_out) == (1, 1, 2)


def test_a_document_that_gives_nothing_is_dropped_with_its_reason(run):
    texts = {
        "good": PROSE * 3,
        "short": "Too short.",
        "long": PROSE * 300,
        "empty": "  ",
        "only headings": "== A ==\n\n== B ==",
        "French": "Les cornemuses irlandaises se jouent avec un soufflet que le musicien actionne du coude. " * 3,
        "": PROSE * 3,
    }
    passages, dropped, report = run(texts)

    assert {row["source"]["title"]: row["reason"] for row in dropped} == {
        "short": "document_too_short",
        "long": "document_too_long",
        "empty": "page_without_text",
        "only headings": "page_without_prose",
        "French": "document_wrong_language",
        "": "page_without_title",
    }
    assert [passage.title for passage in passages] == ["good"]
    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == len(texts)


def test_a_source_that_gives_nothing_at_all_is_refused_with_the_reasons(run):
    with pytest.raises(InputError, match=r"docs\.jsonl: gives no passage for 'en': document_too_short 2"):
        run({"a": "Short.", "b": "Shorter."})


def test_an_empty_source_is_refused(run):
    with pytest.raises(InputError, match=r"docs\.jsonl: gives no passage for 'en': it holds no page"):
        run({})


def test_keywords_choose_documents_by_title_or_text_in_any_case(run):
    texts = {"Pipes": PROSE * 2, "Dance": "The reel is danced in Ireland by many people, young and old. " * 2}

    def left(**keywords):
        passages, dropped, _ = run(texts, **keywords)
        return [p.title for p in passages], {row["source"]["title"]: (row["reason"], row["detail"]) for row in dropped}

    assert left(keywords=["BAGPIPES", "fiddle"]) == (["Pipes"], {"Dance": ("document_without_keyword", "")})
    assert left(keywords=["dance", "ireland"], without_keywords=["pipes"]) == (
        ["Dance"],
        {"Pipes": ("document_with_excluded_keyword", "pipes")},
    )


@pytest.fixture
def words(tmp_path):
    """A tokenizer whose tokens are words."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_tokenizer_that_is_given_counts_instead_of_estimates(run, words):
    assert len(PROSE.split()) == 14
    kept, _, _ = run({"Pipes": PROSE * 6}, tokenizer=str(words), segment_tokens=28)
    assert [len(passage.text.split()) for passage in kept] == [28, 28, 28]
    _, (dropped,), _ = run({"Pipes": PROSE, "Others": PROSE * 2}, tokenizer=str(words / "tokenizer.json"), min_tokens=20)
    assert (dropped["reason"], dropped["detail"]) == ("document_too_short", "14 tokens < 20")


def test_a_tokenizer_that_is_none_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"is no tokenizer\.json, nor a folder with one"):
        run({"Pipes": PROSE}, tokenizer=str(tmp_path / "nowhere"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad\.json: cannot be read"):
        run({"Pipes": PROSE}, tokenizer=str(tmp_path / "bad.json"))


def test_a_keyword_is_found_however_its_letters_are_composed(run):
    _, dropped, _ = run({"Brest": PROSE * 2 + "Cafe\u0301s are many.", "Pipes": PROSE * 2}, without_keywords=["caf\u00e9"])
    assert [row["source"]["title"] for row in dropped] == ["Brest"]


def test_a_traditional_keyword_is_found_in_simplified_text():
    knowledge = Knowledge(kind="jsonl", path="x", without_keywords=("臺灣",))
    assert _keyword_fault("台湾的茶", knowledge, simplified=True) == ("document_with_excluded_keyword", "臺灣")
    assert _keyword_fault("台湾的茶", knowledge, simplified=False) is None


def test_documents_are_drawn_by_seed_whatever_their_order(run):
    texts = {f"d{number}": PROSE * 3 for number in range(30)}

    drawn = [{p.title for p in run(dict(items), max_documents=5)[0]} for items in (texts.items(), reversed(texts.items()))]

    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5


def test_a_draw_fills_up_with_others_where_documents_prove_too_short(run):
    texts = {f"d{number}": PROSE * 3 if number % 4 == 0 else "Short." for number in range(40)}

    passages, dropped, report = run(texts, max_documents=5)

    assert len(passages) == 5
    assert Counter(row["reason"] for row in dropped)["document_too_short"] == report.dropped["document_too_short"]
    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == 40


@pytest.mark.parametrize("drawn", [{}, {"max_documents": 3}])
def test_several_processes_give_what_one_gives(run, tmp_path, monkeypatch, drawn):
    texts = {f"d{number}": PROSE * (number + 1) if number % 3 else "Short." for number in range(20)}
    alone = run(texts, **drawn)
    monkeypatch.setattr(module, "_WORTH_PROCESSES", 0)

    shutil.rmtree(tmp_path / "work")

    assert run(texts, count=2, **drawn) == alone


def test_of_documents_that_are_held_back_only_the_drawn_ones_are_parsed_and_nothing_stays(run, tmp_path, monkeypatch):
    parsed = []
    plain = records.plain_sections
    monkeypatch.setattr(records, "plain_sections", lambda text: parsed.append(text) or plain(text))

    passages, _, report = run({f"d{number}": f"{number} {PROSE * 3}" for number in range(200)}, max_documents=2)

    assert (len(passages), report.dropped) == (2, {"not_sampled": 198})
    assert len(parsed) <= 2 * 8
    assert not list(tmp_path.glob("work/*/held"))


def test_traditional_characters_become_simplified_ones_in_title_and_text(run):
    text = "崑曲是中國古老的戲曲劇種，發源於蘇州崑山一帶。" * 5

    (passage,), _, _ = run({"崑曲藝術": text}, language="zh")

    assert (passage.title, passage.sections[0].text[:12]) == ("昆曲艺术", "昆曲是中国古老的戏曲剧种")


def test_traditional_characters_stay_where_the_recipe_wants_them(run):
    (passage,), _, _ = run({"崑曲藝術": "崑曲是中國古老的戲曲劇種。" * 8}, language="zh", simplified=False)

    assert passage.title == "崑曲藝術"


@pytest.mark.parametrize("change", [{"seed": 8}, {"min_tokens": 11}, {"segment_tokens": 201}, {"licence": "CC0 1.0"}])
def test_whatever_decides_the_passages_is_in_the_steps_fingerprint(tmp_path, change):
    (tmp_path / "docs.jsonl").write_text("{}")
    path = tmp_path / "docs.jsonl"
    table = {"name": "p", "languages": ["en"], "dialogues": {"en": [{"mode": "reverse"}]}, "seed": change.pop("seed", 7)}
    changed = parse_recipe(table | {"knowledge": {"en": {"kind": "jsonl", "path": str(path)} | change}})
    before = parse_recipe(table | {"seed": 7, "knowledge": {"en": {"kind": "jsonl", "path": str(path)}}})

    assert step_folder(passage_step(changed, "en"), tmp_path) != step_folder(passage_step(before, "en"), tmp_path)


@pytest.fixture(scope="module")
def real_dump(tmp_path_factory, real_data):
    """The passages of the real dump of 206 pages and the step's report."""
    dump = real_data / "wiki" / "enwiki-sample.xml.bz2"
    step = passage_step(recipe(dump, kind="wikipedia-dump", min_tokens=100, max_tokens=30_000, segment_tokens=2000), "en")
    work = tmp_path_factory.mktemp("real")
    report = run_step(step, work, Processes(1), 1000)
    return [passage_from_row(row) for row in rows_of(step_folder(step, work))], report


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["<ref", "{{", "}}", "[[", "{|", "thumb|", "File:", "Category:", "''", "&nbsp;", "\n\n\n"])
def test_no_passage_of_the_real_dump_holds_markup(real_dump, mark):
    passages, _ = real_dump

    assert not [passage.id for passage in passages if mark in passage.text]


@pytest.mark.slow
def test_every_page_of_the_real_dump_is_accounted_for(real_dump):
    passages, report = real_dump

    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == 206
    assert report.rows_used >= 90
    assert report.rows_out == len(passages) >= 300


@pytest.mark.slow
def test_hardly_any_prose_of_the_real_dump_is_lost(real_dump):
    """Its 5.75 MB of wikitext are half markup and sources; 2.7 MB are prose by reading."""
    passages, _ = real_dump

    assert sum(len(passage.text) for passage in passages) > 2_700_000


@pytest.mark.slow
def test_no_passage_of_the_real_dump_ends_by_announcing_what_is_gone(real_dump):
    passages, _ = real_dump

    assert not [passage.id for passage in passages if passage.position and passage.text.endswith(":")]
