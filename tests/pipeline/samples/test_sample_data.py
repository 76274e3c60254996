"""The sample data that ships with the package is what its README says, and what the build is to find in it is found."""

import bz2
import importlib.util
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pipeline.build import plan
from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import rows_of, step_folder
from pipeline.engine.run import run_step, run_steps
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import passage_from_row

LANGUAGES = ["en", "zh", "ru", "fr", "es"]
TASKS = ["chat_agnostic", "math", "code"]
ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "pipeline" / "samples"


def recipe(**tables):
    return parse_recipe({"name": "samples", "languages": LANGUAGES, **tables})


@pytest.fixture(scope="module")
def pack():
    """`tools/pack_sample_knowledge.py`, which is no package."""
    spec = importlib.util.spec_from_file_location("pack_sample_knowledge", ROOT / "tools" / "pack_sample_knowledge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    """Of each language the passages of the sample dump and the step's report."""
    work = tmp_path_factory.mktemp("knowledge")
    table = {
        code: {
            "kind": "wikipedia-dump",
            "path": f"sample:knowledge/{code}wiki-sample.xml.bz2",
            "min_tokens": 120,
            "segment_tokens": 1000,
        }
        for code in LANGUAGES
    }
    steps = plan(recipe(knowledge=table, dialogues={code: [{"mode": "reverse"}] for code in LANGUAGES}))[: len(LANGUAGES)]
    reports = [run_step(step, work, Processes(1), 1000) for step in steps]
    passages = [[passage_from_row(row) for row in rows_of(step_folder(step, work))] for step in steps]
    return {code: (passages[n], reports[n]) for n, code in enumerate(LANGUAGES)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_dump_is_what_its_articles_pack_into(pack, language):
    shipped = bz2.decompress((SAMPLES / "knowledge" / f"{language}wiki-sample.xml.bz2").read_bytes()).decode()

    assert shipped == pack.dump(language), "run python tools/pack_sample_knowledge.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_dump_has_eight_articles_and_pages_to_leave_out(knowledge, language):
    _, report = knowledge[language]

    assert report.rows_used >= 8
    assert {"redirect", "disambiguation", "document_too_short"} <= set(report.dropped)
    assert {"list_page", "other_namespace"} & set(report.dropped)  # Spanish lists have a namespace of their own


def test_the_dumps_have_45_articles_in_all(knowledge):
    assert sum(report.rows_used for _, report in knowledge.values()) >= 45


def _has_letter(word):
    return any(c.isalnum() for c in word)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_articles_have_the_length_that_was_promised(knowledge, language):
    """150–450 words, of Chinese 250–800 characters."""
    lengths: Counter[str] = Counter()
    for passage in knowledge[language][0]:
        text = " ".join(section.text for section in passage.sections)
        lengths[passage.title] += sum("一" <= c <= "鿿" for c in text) if language == "zh" else sum(map(_has_letter, text.split()))
    low, high = (250, 800) if language == "zh" else (150, 450)

    assert {title: n for title, n in lengths.items() if not low <= n <= high} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_articles_prose_holds_no_markup(knowledge, language):
    marks = ("<", ">", "{", "}", "[[", "]]", "''", "|", "thumb", "File:", "Category:", "()", "（）", " ,", "__", "&nbsp", "&amp")
    texts = [passage.text for passage in knowledge[language][0]]

    assert [(mark, text[:40]) for text in texts for mark in marks if mark in text] == []


def test_chinese_articles_in_both_scripts_are_read_as_simplified(knowledge):
    text = "".join(passage.text for passage in knowledge["zh"][0])

    assert not set("國學戲劇這個時樂說來為與") & set(text)


POOL = {
    row["id"]: row
    for task in TASKS
    for row in map(json.loads, (SAMPLES / "agnostic" / f"{task}.jsonl").read_text("utf-8").splitlines())
}
FOUND_AS = {
    "culture_bound": {"culture_bound"},
    "near_duplicate": {"near_duplicate"},
    "exact_duplicate": {"exact_duplicate"},
    "wrong_language": {"answer_in_other_language"},
    "broken": {"answer_empty", "answer_refuses", "answer_breaks_off", "answer_repeats_itself"},
    "bad_translation": {"translation_numbers_differ", "translation_result_differs"},
}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """Row ids with the reason for which each left, and the decisions about the rows that stayed."""
    work = tmp_path_factory.mktemp("pool")
    budget = {"en": "all", "zh": 7, "ru": 7, "fr": 7, "es": 7}
    steps = plan(recipe(agnostic={t: {"path": f"sample:agnostic/{t}.jsonl", "budget": budget} for t in TASKS}))
    run_steps(steps, work, Processes(1), rows_per_part=50)
    dropped = {row["source"]["title"]: row["reason"] for step in steps for row in rows_of(step_folder(step, work), "dropped")}
    return dropped, {row["source"]["title"]: row["decisions"] for row in rows_of(step_folder(steps[-1], work))}


def test_the_pool_has_the_rows_that_its_readme_counts():
    english = {row["group"] for row in POOL.values() if row["language"] == "en" and not row["planted"]}
    languages = defaultdict(set)
    for row in POOL.values():
        if not row["planted"]:
            languages[row["group"]].add(row["language"])

    assert len(english) >= 45
    assert sum(found == set(LANGUAGES) for found in languages.values()) >= len(english) / 3
    assert {row["planted"] for row in POOL.values()} == {None, *FOUND_AS}


@pytest.mark.parametrize(
    "row", [r["id"] for r in POOL.values() if r["planted"] and not (r["planted"] == "culture_bound" and r["language"] == "en")]
)
def test_a_planted_row_is_found_for_what_was_planted(cleaned, row):
    dropped, _ = cleaned

    assert dropped.get(row) in FOUND_AS[POOL[row]["planted"]]


@pytest.mark.parametrize("row", [r["id"] for r in POOL.values() if r["planted"] == "culture_bound" and r["language"] == "en"])
def test_a_culture_bound_row_stays_in_english_and_is_marked(cleaned, row):
    _, kept = cleaned

    assert any("culture-bound" in decision["decision"] for decision in kept[row])


def test_no_other_row_leaves_but_over_its_budget(cleaned):
    dropped, _ = cleaned

    assert {row: reason for row, reason in dropped.items() if not POOL[row]["planted"] and reason != "over_budget"} == {}


def test_no_other_row_is_taken_for_culture_bound(cleaned):
    _, kept = cleaned

    marked = {row for row, decisions in kept.items() if any("culture-bound" in d["decision"] for d in decisions)}
    assert {row for row in marked if POOL[row]["planted"] != "culture_bound"} == set()
