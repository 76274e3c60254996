"""Where a build may write: a new or empty folder, or one that a build has marked."""

from pathlib import Path

import pytest

from pipeline.build import plan, workspace
from pipeline.errors import InputError
from pipeline.recipe import parse_recipe
from pipeline.release.publish import check_output


def test_somebody_elses_folder_with_our_names_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.csv").write_text("1,2", "utf-8")
    (tmp_path / "README.md").write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"holds something else \(README\.md\)"):
        check_output(tmp_path)
    assert (tmp_path / "data" / "precious.csv").read_text("utf-8") == "1,2"


@pytest.mark.parametrize("mark", [".stages", ".publishing"])
def test_what_a_killed_build_left_is_taken_up(tmp_path: Path, mark: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / mark).mkdir()
    check_output(tmp_path)


def test_a_folder_with_hidden_files_only_is_as_good_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    check_output(tmp_path)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(InputError, match="file: is a file"):
        check_output(tmp_path / "file" / "data")


def test_the_output_folder_cannot_be_the_work_folder_too(tmp_path: Path) -> None:
    table = {
        "name": "x",
        "languages": ["fr"],
        "knowledge": {"fr": {"kind": "wikipedia-dump", "path": "sample:knowledge/frwiki-sample.xml.bz2"}},
        "dialogues": {"fr": [{"mode": "reverse"}]},
    }
    with pytest.raises(InputError, match="is the output folder itself"), workspace(plan(parse_recipe(table)), tmp_path, tmp_path):
        pass
