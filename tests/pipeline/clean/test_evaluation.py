"""Items of evaluation sets, and stretches of them in texts of any script."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.evaluation import Item, Overlap, evaluation_items, ngrams, read_sets
from pipeline.errors import InputError


def overlap(*texts: str) -> Overlap:
    return Overlap(Item(f"eval.tsv:{number}", text) for number, text in enumerate(texts, 1))


def finds(item: str, text: str) -> bool:
    return overlap(item).find(text) is not None


@pytest.fixture
def tsv(tmp_path):
    def tsv(content: str) -> list[tuple[str, str]]:
        path = tmp_path / "a.tsv"
        path.write_bytes(content.encode())
        return [(item.name, item.text) for item in evaluation_items(path)]

    return tsv


# Reading


def test_items_come_from_tsv_jsonl_json_and_parquet_named_by_file_and_number(tmp_path):
    (tmp_path / "a.tsv").write_text("One?\t1\n\nTwo?\t2\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "One?"}\n{"question": "Two?", "answer": "2"}\n')
    pq.write_table(pa.table({"problem": ["One?", "Two?"]}), tmp_path / "c.parquet")

    (tmp_path / "d.json").write_text('[{"prompt": "One?"},\n {"question": "Two?"}]\n')
    (tmp_path / "e.json").write_bytes((tmp_path / "b.jsonl").read_bytes())

    squad = [
        {
            "title": "A",
            "paragraphs": [{"context": "c", "qas": [{"question": "One?"}]}, {"qas": []}, {"qas": [{"question": "Two?"}]}],
        }
    ]
    (tmp_path / "f.json").write_text(json.dumps({"version": "1.1", "data": squad}))
    (tmp_path / "g.json").write_text('{"data": [{"prompt": "One?"}, {"question": "Two?"}]}')

    for name in ("a.tsv", "b.jsonl", "c.parquet", "d.json", "e.json", "f.json", "g.json"):
        assert list(evaluation_items(tmp_path / name)) == [Item(f"{name}:1", "One?"), Item(f"{name}:2", "Two?")]


def test_a_folder_of_parquet_files_is_one_set(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"question": ["One?"]}), folder / "0.parquet")
    pq.write_table(pa.table({"question": ["Two?"]}), folder / "1.parquet")

    assert [item.name for item in evaluation_items(folder)] == ["set:1", "set:2"]
    assert {item.file for item in evaluation_items(folder)} == {"set"}


@pytest.mark.parametrize("letter", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_only_a_line_end_ends_an_item_of_a_tsv(tsv, letter):
    assert tsv(f"One{letter}and more?\t1\nTwo?\t2\n") == [("a.tsv:1", f"One{letter}and more?"), ("a.tsv:2", "Two?")]


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_not_of_the_items(tsv):
    assert tsv("\ufeffOne?\t1\r\nTwo?\r\n") == [("a.tsv:1", "One?"), ("a.tsv:2", "Two?")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"task": "x"}', r"a\.jsonl: row 1: has none of the keys question, prompt"),
        ("a.jsonl", b'{"question": null}', r"a\.jsonl: row 1: has none of the keys question, prompt"),
        ("a.jsonl", b"[]", r"a\.jsonl: line 1: is not a JSON object"),
        ("a.json", b'{"data": []}', r"a\.json: holds no item"),
        ("a.json", b'{"data": [{"paragraphs": [{"qas": "x"}]}]}', r"a\.json: expected an array of objects"),
        ("a.json", b'{"data": ["x"]}', r"a\.json: expected an array of objects"),
        ("a.json", b'[{"question": "\\ud800"}]', r"a\.json: is not Unicode"),
        ("a.json", b'["x"]', r"a\.json: expected an array of objects"),
        ("a.json", b'[{"question": "x"}', r"a\.json: line 1: is not JSON"),
        ("a.json", b"[]", r"a\.json: holds no item"),
        ("a.json", b'[{"task": "x"}]', r"a\.json: row 1: has none of the keys"),
        ("a.tsv", b"caf\xe9", r"a\.tsv: cannot be read: 'utf-8'"),
        ("a.parquet", b"no", r"a\.parquet: is not Parquet"),
        ("a.parquet", b"", r"a\.parquet: "),
    ],
)
def test_a_set_that_cannot_be_read_is_refused_by_file_and_row(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=problem):
        list(evaluation_items(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.parquet"])
def test_a_set_that_is_not_there_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(InputError, match=name):
        list(evaluation_items(tmp_path / name))


def test_a_folder_without_parquet_files_is_no_set(tmp_path):
    with pytest.raises(InputError, match="holds no Parquet file"):
        list(evaluation_items(tmp_path))


# Stretches


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=25))
def test_an_item_gives_all_its_stretches_of_ten_or_itself(words):
    stretches = {" ".join(words[i : i + 10]) for i in range(max(1, len(words) - 9))}

    assert ngrams(" ".join(words)) == stretches


@given(st.lists(st.sampled_from("珍妮特的鸭子"), min_size=8, max_size=45))
def test_an_item_without_spaces_gives_all_its_stretches_of_twenty_or_itself(characters):
    stretches = {" ".join(characters[i : i + 20]) for i in range(max(1, len(characters) - 19))}

    assert ngrams("".join(characters)) == stretches


def naive_units(text: str) -> list[str]:
    return [unit for word in text.split() for unit in ([word] if word.isascii() else word)]


def naive_stretches(text: str) -> tuple[int, set[str]]:
    units = naive_units(text)
    times = 2 if sum(not unit.isascii() for unit in units) * 2 > len(units) else 1
    length = min(10 * times, len(units))
    return length, {" ".join(units[i : i + length]) for i in range(len(units) - length + 1)} if len(units) >= 4 * times else set()


def naive_windows(text: str, length: int) -> list[str]:
    units = naive_units(text)
    return [" ".join(units[i : i + length]) for i in range(len(units) - length + 1)]


UNITS = st.lists(st.sampled_from(["a", "b", "字", "一二"]), max_size=30).map(" ".join)


@given(st.lists(UNITS, max_size=4), UNITS)
@example(["a b a b a b"], "b a b a b a b")
@example(["字 字 字 字 字 字 字 字", "a b a b"], "a b a 字 字 字 字 字 字 字 字 a b a b")
def test_what_is_found_is_the_intersection_of_all_stretches_and_the_first_of_the_text(items, text):
    found = overlap(*items).find(text)

    stretches = [naive_stretches(item) for item in items]
    starts = [start for length, wanted in stretches for start, window in enumerate(naive_windows(text, length)) if window in wanted]
    assert (found is None) == (not starts)
    if found is not None:
        length, wanted = naive_stretches(found.item.text)
        windows = naive_windows(text, length)
        assert found.stretch in wanted
        assert windows.index(found.stretch) == min(starts)
        assert found.share == len(wanted.intersection(windows)) / len(wanted)


def test_items_that_are_too_short_are_not_looked_for():
    texts = ("What is it?", "", "!?", "为什么他不去?", "What is two plus two?", "为什么他今天不去?")
    items = overlap(*texts)

    assert [bool(ngrams(text)) for text in texts] == [False] * 4 + [True] * 2
    assert items.find("What is it? 为什么他不去?") is None


def test_of_several_items_the_one_that_stands_there_most_wholly_is_told():
    preamble = "Answer the following question with one of the four letters that stand below it please."
    items = Overlap([Item(f"exam.jsonl:{n}", f"{preamble} {' '.join(f'word{n}x{k}' for k in range(12))}") for n in range(1, 6)])

    assert items.find(f"{preamble} {' '.join(f'word4x{k}' for k in range(12))}").item.name == "exam.jsonl:4"
    assert items.find(preamble).share < 0.5


def test_sets_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path):
    for folder in ("gsm8k", "math"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text('{"question": "What is two plus two?"}')

    names = [item.name for item in read_sets([tmp_path / "gsm8k" / "test.jsonl", tmp_path / "math" / "test.jsonl"])]

    assert names == ["gsm8k/test.jsonl:1", "math/test.jsonl:1"]


def test_an_item_of_several_sets_is_found_in_the_first():
    one, other = Item("one.tsv:7", "What is two plus two?"), Item("other.tsv:1", "what is two plus TWO")

    found = Overlap([one, other]).find("So what is two plus two?")

    assert found is not None
    assert found.item is one


# Scripts

CHINESE = "珍妮特的鸭子每天下十六个蛋，她每天早上早餐吃三个，还用四个给朋友烤松饼。"
JAPANESE = "ジャネットのアヒルは一日に十六個の卵を産みます。彼女は毎朝朝食に三個食べます。"
THAI = "เป็ดของเจเน็ตออกไข่วันละสิบหกฟอง เธอกินสามฟองเป็นอาหารเช้าทุกเช้า"
KHMER = "ទារបស់នាងពងកូនបានដប់ប្រាំមួយក្នុងមួយថ្ងៃ នាងញ៉ាំបីជាអាហារពេលព្រឹក"


def letters(text: str) -> list[str]:
    return [letter for letter in unicodedata.normalize("NFKC", text) if letter.isalnum()]


@pytest.mark.parametrize("item", [CHINESE, JAPANESE, THAI, KHMER])
def test_scripts_without_spaces_are_compared_by_twenty_characters(item):
    own = letters(item)
    enough, too_few = "".join(own[5:25]), "".join(own[5:24])

    assert finds(item, f"前 {enough} 后")
    assert not finds(item, f"前 {too_few} 后")


@pytest.mark.parametrize("item", ["鸭子每天下几个蛋？", "アヒルは卵を産みますか", "เป็ดออกไข่กี่ฟอง"])
def test_a_short_item_without_spaces_counts_whole(item):
    assert finds(item, f"前{item}后")
    assert not finds(item, f"前{item[:-2]}后")


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("राम के पास तीन किताबें और चार कलमें हैं", "राम के पास: तीन किताबें, और चार कलमें हैं।"),
        ("हिन्दी में क्\u200dष लिखो और पढ़ो आज", "हिन्दी में क्ष लिखो और पढ़ो आज"),
        ("كَمْ تُفَّاحَةً عِنْدَ سَارَةَ الْآنَ؟", "كم تفاحة عند سارة الآن؟"),
        ("كم تفاحة عند سارة الآن؟", "\u202bكَمْ\u200f تُفَّاحَةً عِنْدَ سَارَةَ الْآنَ؟\u202c"),
        ("כמה תפוחים יש לשרה עכשיו?", "כַּמָּה תַּפּוּחִים יֵשׁ לְשָׂרָה עַכְשָׁיו?"),
        ("می\u200cخواهم سه کتاب تازه بخرم", "میخواهم سه کتاب تازه بخرم"),
        ("ＷＨＡＴ ｉｓ １２ ｐｌｕｓ ３４？", "what is 12 plus 34?"),
        ("What is 12 plus 34?", "ｗｈａｔ ｉｓ １２ ｐｌｕｓ ３４？"),
        ("ｱﾋﾙは卵をいくつ産みますか", "アヒルは卵をいくつ産みますか"),
        ("İstanbul'da kaç kişi İzmir'e gider", "i̇stanbul'da kaç kişi i̇zmir'e gider"),
        ("İSTANBUL'DA KAÇ KİŞİ VAR", "istanbul'da kaç kişi var"),
        ("Ο ΐδιος πρωΐ τρώει τρία αυγά", "Ο ΐδιος πρωΐ τρώει τρία αυγά".upper()),
        ("Die große Straße ist 3 km lang", "DIE GROSSE STRASSE IST 3 KM LANG"),
        ("Où est le garçon d'à côté?", unicodedata.normalize("NFD", "Où est le garçon d'à côté?")),
        ("How many pomegranates are left over", "How many pome\u00adgranates are left\u2060 over"),
        ("鸭子每天下几个蛋卖了多少", "鸭子 每天\u200b下几个蛋，卖了多少"),
        ("ဘဲတွေကတစ်နေ့ဥဘယ်နှစ်လုံးဥသလဲ", "ဘဲတွေက၊တစ်နေ့ဥဘယ်နှစ်လုံး၊ဥသလဲ။"),
        ("ジャネット・スミスのアヒルの卵", "ジャネットスミスのアヒルの卵"),
    ],
)
def test_case_form_marks_and_what_is_not_seen_make_no_difference(item, text):
    assert finds(item, text)
    assert finds(text, item)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("राम के पास तीन किताबें हैं", "राम के पास तीन कलमें हैं"),
        ("כמה תפוחים יש לשרה עכשיו?", "כמה אגסים יש לשרה עכשיו?"),
        ("What is 12 plus 34?", "What is 12 plus 43?"),
        ("鸭子每天下几个蛋？", "鸭子每天吃几个蛋？"),
    ],
)
def test_another_word_makes_one(item, text):
    assert not finds(item, text)


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_whatever_text_an_item_is_made_of_it_is_found_in_itself_and_among_other_words(item, before, after):
    assert finds(item, f"{before}. {item} .{after}") == bool(ngrams(item))


def test_a_set_without_items_is_refused(tmp_path: Path):
    (tmp_path / "none.jsonl").write_text("")

    with pytest.raises(InputError, match=r"none\.jsonl: holds no item"):
        list(evaluation_items(tmp_path / "none.jsonl"))


def test_no_text_and_no_item_are_no_problem():
    assert overlap().find("What is two plus two?") is None
    assert overlap("What is two plus two?").find("") is None


def test_what_many_items_share_is_no_items_own():
    wording = "Read the question with care choose the one right answer and explain it"
    items = [Item(f"set:{number}", f"{wording} {' '.join(f'w{number}x{k}' for k in range(12))}") for number in range(20)]
    overlap = Overlap(items)

    assert overlap.find(f"{wording} why do cats purr?") is None
    assert overlap.find(items[3].text).item.name == "set:3" and overlap.find(items[3].text).share == 1
    assert Overlap(items[:10]).find(f"{wording} why do cats purr?") is not None  # ten may well be copies of one


def test_an_item_of_nothing_but_shared_words_is_still_looked_for():
    same = "which of these statements about the two numbers below is never true"

    assert Overlap([Item(f"set:{number}", same) for number in range(20)]).find(f"Tell me, {same}?") is not None
