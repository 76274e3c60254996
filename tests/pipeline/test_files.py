import json

import pytest

from pipeline.errors import InputError
from pipeline.files import AtomicFile, Spool, WorkLock, file_hash, write_json, write_text


def test_json_is_sorted_and_ends_with_a_line_end(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ж"})

    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": "ж",\n  "b": 1\n}\n'


def test_a_file_that_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    with pytest.raises(ZeroDivisionError), AtomicFile(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_build_in_one_work_folder_is_told_so(tmp_path):
    with WorkLock(tmp_path), pytest.raises(InputError, match="another build is at work here"), WorkLock(tmp_path):
        pass


def test_a_work_folder_is_free_again_after_its_build(tmp_path):
    for _ in range(2):
        with WorkLock(tmp_path / "work"):
            assert (tmp_path / "work").is_dir()


def test_equal_bytes_have_equal_hashes_wherever_they_lie(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")

    assert file_hash(tmp_path / "a", tmp_path) == file_hash(tmp_path / "b", tmp_path)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"a": 1}))
    before = file_hash(path, tmp_path)
    remembered = file_hash(path, tmp_path)
    path.write_text(json.dumps({"a": 12}))

    assert before == remembered != file_hash(path, tmp_path)


def test_a_folders_hash_covers_the_names_and_the_bytes_of_its_files(tmp_path):
    folder, work = tmp_path / "pool", tmp_path / "work"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    hashes = [file_hash(folder, work)]
    (folder / "a.txt").rename(folder / "b.txt")
    hashes.append(file_hash(folder, work))
    (folder / "b.txt").write_text("longer")
    hashes.append(file_hash(folder, work))

    assert len(set(hashes)) == 3


def test_a_missing_file_is_wrong_input(tmp_path):
    with pytest.raises(InputError, match="gone: No such file"):
        file_hash(tmp_path / "gone", tmp_path)


def test_what_waits_on_the_disk_is_found_again_in_any_order_and_leaves_no_file(tmp_path):
    with Spool(tmp_path / "waiting") as spool:
        items = [{"n": n, "text": "ж" * n} for n in range(200)]
        places = [spool.put(item) for item in items]
        assert [spool.get(places[n]) for n in (7, 199, 0, 7)] == [items[7], items[199], items[0], items[7]]

    assert not list(tmp_path.iterdir())
