"""`glotloom explain`: the story of a row, a passage or a page, kept or dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import InputError
from pipeline.release import DatasetFolder, explain, open_dataset


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> DatasetFolder:
    return open_dataset(small_dataset)


def test_a_kept_row_tells_its_source_what_the_stages_noted_and_where_it_stands(dataset: DatasetFolder) -> None:
    row = next(dataset.rows("fr_chat_specific", "validation"))
    story = explain(dataset, row["id"])
    assert story.startswith(f"{row['id']}  (fr, chat_specific)\n  source     glotloom sample knowledge (fr): title ")
    assert f"  made of    {row['parent_ids'][0]}, by reverse; group {row['group_id']}" in story
    assert "  reverse-fr: the answers are the sections " in story
    assert "  kept by    rules, duplicates, decontaminate, prune" in story
    assert "  stands in  fr_chat_specific, split validation" in story
    assert "  user       " + " ".join(row["messages"][0]["content"].split())[:40] in story


def test_a_dropped_row_tells_the_stage_the_reason_and_the_row_that_it_lost_to(dataset: DatasetFolder) -> None:
    [(row_id, partner)] = dataset.query("SELECT id, partner_id FROM dropped WHERE reason = 'near_duplicate'")
    story = explain(dataset, row_id)
    assert "  dropped by duplicates: near_duplicate (Jaccard 0." in story
    assert f"  because of {partner}" in story
    assert "stands in" not in story
    assert "stands in  en_math" in explain(dataset, partner)


def test_a_passage_and_its_page_tell_which_rows_they_gave(dataset: DatasetFolder) -> None:
    row = next(dataset.rows("fr_chat_specific", "train"))
    for origin in (row["parent_ids"][0], row["group_id"]):
        story = explain(dataset, origin).splitlines()
        assert story[0] == origin
        assert row["source"]["title"] in story[1]
        assert f"    {row['id']}  fr_chat_specific, train" in story


def test_a_row_of_a_pool_tells_what_became_of_it_though_it_was_dropped(dataset: DatasetFolder) -> None:
    [(row_id, parents)] = dataset.query("SELECT id, parent_ids FROM dropped WHERE reason = 'exact_duplicate'")
    assert f"    {row_id}  dropped by duplicates: exact_duplicate" in explain(dataset, parents[0])


def test_a_page_that_gave_nothing_tells_why(dataset: DatasetFolder) -> None:
    [(page,)] = dataset.query("SELECT id FROM dropped WHERE reason = 'disambiguation'")
    assert "dropped by passages-fr: disambiguation" in explain(dataset, page)


def test_an_id_is_not_taken_for_the_beginning_of_longer_ones(dataset: DatasetFolder) -> None:
    pages = {group for (group,) in dataset.query("SELECT group_id FROM data WHERE task = 'chat_specific'")}
    page = next(page for page in sorted(pages) if page.endswith("-1"))  # pages …-10 to …-15 were dropped or kept too
    assert explain(dataset, page).count("source") == 1


def test_the_beginning_of_an_id_will_do(dataset: DatasetFolder) -> None:
    row = next(dataset.rows("en_math", "train"))
    assert row["id"] in explain(dataset, row["id"][:8])


def test_of_a_beginning_that_fits_many_some_are_told_and_the_rest_counted(dataset: DatasetFolder) -> None:
    [(first, ids)] = dataset.query(
        "SELECT id[1], count(*) FROM (SELECT id FROM data UNION ALL SELECT id FROM dropped) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
    )
    told = explain(dataset, first)
    assert told.count("\n\n") == min(ids, 21) - 1
    if ids > 20:
        assert told.endswith(f"and {ids - 20} more whose ids begin with {first}")


@pytest.mark.parametrize("unknown", ["zzz", "", "' OR 1=1 --"])
def test_an_unknown_id_is_refused(dataset: DatasetFolder, unknown: str) -> None:
    with pytest.raises(InputError, match="no row, passage or page has the id"):
        explain(dataset, unknown)
