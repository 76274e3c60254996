"""One step being run: once, with the same bytes, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.engine.executors.processes import Processes
from pipeline.engine.parts import MANIFEST, finished, parts, row_count, rows_of, step_folder
from pipeline.engine.run import run_step
from pipeline.engine.step import Context, Decide, Decisions, Make, Outcome, Step, StepReport
from pipeline.errors import InputError, WorkError
from pipeline.rows.sample import SAMPLE_SCHEMA, drop

MakeRows = Callable[[Context], Iterable[Outcome]]


def make_step(make: MakeRows = lambda context: (), config: Mapping[str, Any] | None = None, **rest: Any) -> Step:
    does = Make(lambda none, context: make(context), by_part=False)
    given = {"name": "test", "version": 1, "does": does, "config": config or {}, "schema": SAMPLE_SCHEMA}
    return Step(**given | rest)


def run(step: Step, work: Path, rows_per_part: int = 1000) -> StepReport:
    return run_step(step, work, Processes(1), rows_per_part)


def contents(step: Step, work: Path) -> dict[str, bytes]:
    """Every file of a finished step but for the timings."""
    return {path.name: path.read_bytes() for path in step_folder(step, work).iterdir() if path.name != "timings.json"}


def test_a_step_runs_once_and_then_only_its_manifest_is_read(tmp_path, sample):
    calls = []
    step = make_step(lambda context: calls.append(1) or [sample("a?", "b.")])

    reports = [run(step, tmp_path), run(step, tmp_path)]

    assert len(calls) == 1
    assert reports[0] == reports[1] == finished(step_folder(step, tmp_path))


def test_the_manifest_is_written_last(tmp_path, sample):
    seen = []

    def make(context):
        yield sample("a?", "b.")
        seen.append((context.folder.parent / MANIFEST).exists())

    step = make_step(make)
    run(step, tmp_path)

    assert seen == [False]
    assert finished(step_folder(step, tmp_path)) is not None


def test_a_folder_without_a_manifest_is_made_from_what_is_whole_in_it(tmp_path, sample):
    step = make_step(lambda context: [sample("a?", "b.")])
    folder = step_folder(step, tmp_path)
    (folder / "task-00003.scratch").mkdir(parents=True)
    for name in ("part-00007.parquet", ".part-00000.17-0123abcd.tmp", "task-00003.scratch/held", "task-whole.json"):
        (folder / name).write_bytes(b"half a file")

    run(step, tmp_path)

    assert {path.name for path in folder.iterdir()} == {"part-00000.parquet", "task-whole.json", "timings.json", MANIFEST}
    assert row_count(folder) == 1


def test_a_step_that_was_interrupted_runs_again_with_the_same_bytes(tmp_path, sample):
    rows = [sample("a?", f"{n}.") for n in range(5)]
    interrupt = [True]

    def make(context):
        for number, row in enumerate(rows):
            if number == 3 and interrupt[0]:
                raise KeyboardInterrupt
            yield row

    step = make_step(make)
    with pytest.raises(KeyboardInterrupt):
        run(step, tmp_path / "work", 2)
    interrupt[0] = False
    run(step, tmp_path / "work", 2)
    run(step, tmp_path / "undisturbed", 2)

    assert contents(step, tmp_path / "work") == contents(step, tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"name": "other"}, {"config": {"threshold": 0.9}}, {"config": {"threshold": 0.8, "more": None}}]
)
def test_another_name_version_or_configuration_is_another_step(tmp_path, change):
    before = make_step(config={"threshold": 0.8})
    after = make_step(**({"config": {"threshold": 0.8}} | change))

    assert step_folder(before, tmp_path) != step_folder(after, tmp_path)


def test_other_bytes_in_a_file_that_is_read_are_another_step(tmp_path):
    pool = tmp_path / "pool.jsonl"
    step = make_step(files=(pool,))

    pool.write_text("one")
    before = step_folder(step, tmp_path)
    pool.write_text("another")

    assert step_folder(step, tmp_path) != before


def test_where_a_file_lies_does_not_matter(tmp_path):
    (tmp_path / "here").mkdir()
    for place in ("pool.jsonl", "here/pool.jsonl"):
        (tmp_path / place).write_text("one")
    steps = [make_step(files=(tmp_path / place,)) for place in ("pool.jsonl", "here/pool.jsonl")]

    assert step_folder(steps[0], tmp_path) == step_folder(steps[1], tmp_path)


def test_an_input_that_gives_the_same_bytes_again_leaves_the_next_step_as_it_is(tmp_path, sample):
    folders = []
    for version in (1, 2):
        given_rows = make_step(lambda context: [sample("a?", "b.")], version=version)
        run(given_rows, tmp_path)
        folders.append(step_folder(make_step(name="next", inputs=(given_rows,)), tmp_path))

    assert folders[0] == folders[1]


def test_an_input_that_gives_other_bytes_makes_the_next_step_another(tmp_path, sample):
    folders = []
    for answer in ("b.", "c."):
        given_rows = make_step(lambda context, answer=answer: [sample("a?", answer)], {"answer": answer})
        run(given_rows, tmp_path)
        folders.append(step_folder(make_step(name="next", inputs=(given_rows,)), tmp_path))

    assert folders[0] != folders[1]


def test_what_should_be_tried_again_runs_again(tmp_path):
    calls = []

    def make(context):
        calls.append(1)
        context.run_again = len(calls) == 1
        return ()

    step = make_step(make)
    for _ in range(3):
        run(step, tmp_path)

    assert len(calls) == 2


def test_decisions_that_should_be_tried_again_are_made_again(tmp_path, sample):
    calls = []

    def decide(table, context):
        calls.append(1)
        context.run_again = len(calls) == 1
        return Decisions.of([(0, "odd", "", None, "")] if len(calls) == 1 else [])

    given_rows = make_step(lambda context: [sample("a?", "b.")], name="given")
    step = make_step(does=Decide(decide, by_part=False), inputs=(given_rows,))
    run(given_rows, tmp_path)

    assert [run(step, tmp_path).rows_out for _ in range(3)] == [0, 1, 1]
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["part-00001.parquet", "dropped-00000.parquet"])
def test_a_step_of_which_a_file_is_gone_is_made_again_with_the_same_bytes(tmp_path, sample, name):
    calls = []

    def make(context):
        calls.append(1)
        yield from (drop(sample("a?", f"{n}."), "odd") if n == 1 else sample("a?", f"{n}.") for n in range(5))

    step = make_step(make)
    run(step, tmp_path, 2)
    whole = contents(step, tmp_path)
    (step_folder(step, tmp_path) / name).unlink()

    assert finished(step_folder(step, tmp_path)) is None
    run(step, tmp_path, 2)
    assert len(calls) == 2
    assert contents(step, tmp_path) == whole


def test_wrong_input_leaves_no_folder(tmp_path):
    def make(context):
        raise InputError("pool.jsonl: line 3: is not JSON")

    step = make_step(make)
    with pytest.raises(InputError, match="line 3"):
        run(step, tmp_path)

    assert not step_folder(step, tmp_path).exists()


def test_an_account_that_is_refused_is_wrong_input_and_leaves_no_folder(tmp_path, sample):
    seen = []

    def refuse(report):
        seen.append(report)
        return None if report.rows_out else f"pool.jsonl: gives no row: {report.dropped}"

    empty = make_step(lambda context: [drop(sample("a?", ""), "answer_empty")], refuse=refuse)
    with pytest.raises(InputError, match=r"^pool\.jsonl: gives no row: {'answer_empty': 1}$"):
        run(empty, tmp_path)
    assert not step_folder(empty, tmp_path).exists()

    assert run(make_step(lambda context: [sample("a?", "b.")], {"n": 1}, refuse=refuse), tmp_path) == seen[1]


def test_a_full_disk_fails_the_work_and_names_the_step(tmp_path):
    def make(context):
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkError, match=r"stage test: .*No space left"):
        run(make_step(make), tmp_path)


def test_rows_past_a_parts_end_go_into_the_next_part(tmp_path, sample):
    rows = [sample("a?", f"{number}.") for number in range(9)]

    step = make_step(lambda context: rows)
    run(step, tmp_path, 4)
    folder = step_folder(step, tmp_path)

    assert [pq.read_metadata(path).num_rows for path in parts(folder)] == [4, 4, 1]
    assert [row["id"] for row in rows_of(folder)] == [row.id for row in rows]
    assert row_count(folder) == 9


def test_the_scratch_folder_is_empty_at_the_start_and_gone_at_the_end(tmp_path, sample):
    def make(context):
        assert list(context.folder.iterdir()) == []
        (context.folder / "held").write_text("much")
        yield sample("a?", "b.")

    step = make_step(make)
    run(step, tmp_path)

    assert not list(step_folder(step, tmp_path).rglob("*held*"))


def test_nothing_kept_and_nothing_dropped_is_a_finished_step(tmp_path):
    step = make_step()

    assert run(step, tmp_path).rows_in == 0
    assert list(rows_of(step_folder(step, tmp_path))) == []
    assert finished(step_folder(step, tmp_path)) is not None


def test_a_dropped_row_keeps_its_columns_and_says_why(tmp_path, sample):
    row = sample("a?", "b.", title="seven")
    step = make_step(lambda context: [drop(row, "near_duplicate", partner_id="abc", detail="Jaccard 0.91")])
    run(step, tmp_path)

    (dropped,) = rows_of(step_folder(step, tmp_path), "dropped")

    assert dropped["id"] == row.id
    assert [message["content"] for message in dropped["messages"]] == ["a?", "b."]
    assert (dropped["stage"], dropped["reason"], dropped["partner_id"], dropped["detail"]) == (
        "test",
        "near_duplicate",
        "abc",
        "Jaccard 0.91",
    )


def test_the_work_folder_is_made(tmp_path):
    run(make_step(), tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_missing_file_is_wrong_input(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: No such file"):
        run(make_step(files=(Path(tmp_path / "gone.jsonl"),)), tmp_path)


def test_the_progress_of_a_step_begins_at_nothing_and_names_it(tmp_path, sample):
    told = []

    def make(context):
        context.progress(7, 9)
        return [sample("a?", "b.")]

    run_step(make_step(make), tmp_path, Processes(1), 10, lambda *own: told.append(own))

    assert told == [("test", 0, None), ("test", 7, 9)]
