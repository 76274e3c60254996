from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import step as stage_module
from pipeline.engine.step import MANIFEST, Stage, finished, parts, read_report, row_count, rows_of, run_stage, stage_folder
from pipeline.errors import InputError, WorkError
from pipeline.rows.sample import SAMPLE_SCHEMA, drop


def make_stage(run: Callable[..., None], config: Mapping[str, Any] | None = None, **rest: Any) -> Stage:
    return Stage(name="test", version=rest.pop("version", 1), run=run, config=config or {}, schema=SAMPLE_SCHEMA, **rest)


def test_a_stage_runs_once_and_then_only_its_manifest_is_read(tmp_path, sample):
    calls = []
    stage = make_stage(lambda run: (calls.append(1), run.keep(sample("a?", "b."))))

    reports = [run_stage(stage, tmp_path), run_stage(stage, tmp_path)]

    assert len(calls) == 1
    assert reports[0] == reports[1] == read_report(stage_folder(stage, tmp_path))


def test_the_manifest_is_written_last(tmp_path, sample):
    seen = []

    def run(run):
        run.keep(sample("a?", "b."))
        seen.append((run.folder / MANIFEST).exists())

    stage = make_stage(run)
    run_stage(stage, tmp_path)

    assert seen == [False]
    assert finished(stage_folder(stage, tmp_path)) is not None


def test_a_folder_without_a_manifest_is_made_anew(tmp_path, sample):
    stage = make_stage(lambda run: run.keep(sample("a?", "b.")))
    folder = stage_folder(stage, tmp_path)
    folder.mkdir()
    (folder / "part-00007.parquet").write_bytes(b"half a file")

    run_stage(stage, tmp_path)

    assert [path.name for path in parts(folder)] == ["part-00000.parquet"]


def test_a_stage_that_was_interrupted_runs_again_with_the_same_bytes(tmp_path, sample):
    rows = [sample("a?", f"{n}.") for n in range(5)]
    interrupt = [True]

    def run(run):
        for number, row in enumerate(rows):
            if number == 3 and interrupt[0]:
                raise KeyboardInterrupt
            run.keep(row)

    stage = make_stage(run)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, tmp_path / "work")
    interrupt[0] = False
    run_stage(stage, tmp_path / "work")
    run_stage(stage, tmp_path / "undisturbed")

    contents = [
        {path.name: path.read_bytes() for path in stage_folder(stage, tmp_path / work).iterdir() if path.name != "timings.json"}
        for work in ("work", "undisturbed")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("change", [{"version": 2}, {"config": {"threshold": 0.9}}, {"config": {"threshold": 0.8, "more": None}}])
def test_another_version_or_configuration_is_another_stage(tmp_path, change):
    before = make_stage(lambda run: None, {"threshold": 0.8})
    after = make_stage(lambda run: None, **({"config": {"threshold": 0.8}} | change))

    assert stage_folder(before, tmp_path) != stage_folder(after, tmp_path)


def test_other_bytes_in_a_file_that_is_read_are_another_stage(tmp_path):
    pool = tmp_path / "pool.jsonl"
    stage = make_stage(lambda run: None, files=(pool,))

    pool.write_text("one")
    before = stage_folder(stage, tmp_path)
    pool.write_text("another")

    assert stage_folder(stage, tmp_path) != before


def test_where_a_file_lies_does_not_matter(tmp_path):
    (tmp_path / "here").mkdir()
    for place in ("pool.jsonl", "here/pool.jsonl"):
        (tmp_path / place).write_text("one")
    stages = [make_stage(lambda run: None, files=(tmp_path / place,)) for place in ("pool.jsonl", "here/pool.jsonl")]

    assert stage_folder(stages[0], tmp_path) == stage_folder(stages[1], tmp_path)


def test_an_input_that_gives_the_same_bytes_again_leaves_the_next_stage_as_it_is(tmp_path, sample):
    inputs = [make_stage(lambda run: run.keep(sample("a?", "b.")), version=version) for version in (1, 2)]
    folders = []
    for given_rows in inputs:
        run_stage(given_rows, tmp_path)
        folders.append(
            stage_folder(Stage(name="next", version=1, run=print, config={}, inputs=(given_rows,), schema=SAMPLE_SCHEMA), tmp_path)
        )

    assert folders[0] == folders[1]


def test_what_should_be_tried_again_runs_again(tmp_path):
    calls = []

    def run(run):
        calls.append(1)
        run.run_again = len(calls) == 1

    stage = make_stage(run)
    for _ in range(3):
        run_stage(stage, tmp_path)

    assert len(calls) == 2


def test_wrong_input_leaves_no_folder(tmp_path):
    def run(run):
        raise InputError("pool.jsonl: line 3: is not JSON")

    stage = make_stage(run)
    with pytest.raises(InputError, match="line 3"):
        run_stage(stage, tmp_path)

    assert not stage_folder(stage, tmp_path).exists()


def test_a_full_disk_fails_the_work_and_names_the_stage(tmp_path):
    def run(run):
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkError, match=r"stage test: .*No space left"):
        run_stage(make_stage(run), tmp_path)


def test_rows_past_a_parts_end_go_into_the_next_part(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(stage_module, "ROWS_PER_PART", 4)
    rows = [sample("a?", f"{number}.") for number in range(9)]

    stage = make_stage(lambda run: [run.keep(row) for row in rows])
    run_stage(stage, tmp_path)
    folder = stage_folder(stage, tmp_path)

    assert [pq.read_metadata(path).num_rows for path in parts(folder)] == [4, 4, 1]
    assert [row["id"] for row in rows_of(folder)] == [row.id for row in rows]
    assert row_count(folder) == 9


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["keep", "make two", "make none", "drop", "pass over"]), max_size=30))
def test_every_row_that_comes_in_is_used_or_dropped_for_a_reason(tmp_path_factory, sample, fates):
    def run(run):
        for number, fate in enumerate(fates):
            row = sample("a?", f"{number}.")
            if fate == "drop":
                run.drop(drop(row, "too_dull"))
            elif fate == "pass over":
                run.pass_over("redirect")
            else:
                run.keep(*[row] * {"keep": 1, "make two": 2, "make none": 0}[fate])

    stage = make_stage(run)
    work = tmp_path_factory.mktemp("work")
    report = run_stage(stage, work)
    folder = stage_folder(stage, work)

    assert report.rows_in == report.rows_used + sum(report.dropped.values()) == len(fates)
    assert report.rows_out == row_count(folder) == fates.count("keep") + 2 * fates.count("make two")
    assert row_count(folder, "dropped") == fates.count("drop")


def test_nothing_kept_and_nothing_dropped_is_a_finished_stage(tmp_path):
    stage = make_stage(lambda run: None)

    assert run_stage(stage, tmp_path).rows_in == 0
    assert list(rows_of(stage_folder(stage, tmp_path))) == []


def test_a_dropped_row_keeps_its_columns_and_says_why(tmp_path, sample):
    row = sample("a?", "b.", title="seven")
    stage = make_stage(lambda run: run.drop(drop(row, "near_duplicate", partner_id="abc", detail="Jaccard 0.91")))
    run_stage(stage, tmp_path)

    (dropped,) = rows_of(stage_folder(stage, tmp_path), "dropped")

    assert dropped["id"] == row.id
    assert [message["content"] for message in dropped["messages"]] == ["a?", "b."]
    assert (dropped["stage"], dropped["reason"], dropped["partner_id"], dropped["detail"]) == (
        "test",
        "near_duplicate",
        "abc",
        "Jaccard 0.91",
    )


def test_the_work_folder_is_made(tmp_path):
    run_stage(make_stage(lambda run: None), tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_missing_file_is_wrong_input(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: No such file"):
        run_stage(make_stage(lambda run: None, files=(Path(tmp_path / "gone.jsonl"),)), tmp_path)
