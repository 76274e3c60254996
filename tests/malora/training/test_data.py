"""Reading, labelling and scheduling rows."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora import InputError
from malora.training.data import Row, find_files, split_of
from malora.training.encode import encode
from malora.training.render import render
from malora.training.schedule import group_by_length, schedule, shares

GENERATION_MARKS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SYSTEM_FIRST = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ 'SYSTEM\n' }}{% endif %}"
    "{{ '[' + m['role'] + ']' + m['content'] + '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
REWRITES = "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}"


def dialogue(*turns: str, first: str = "user") -> Row:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return Row(id="row", language="fr", task="chat_specific", messages=messages)


def learned_text(row: Row, tokenizer, max_tokens: int = 10_000) -> str:
    encoded = encode([row], tokenizer, max_tokens).rows[0]
    return tokenizer.decode(encoded.tokens[encoded.learned])


@pytest.mark.parametrize("template", [None, GENERATION_MARKS, SYSTEM_FIRST])
def test_only_the_assistants_words_and_their_end_are_learned(tokenizer, template):
    tokenizer.chat_template = template
    row = dialogue("Où est-ce ?", "À Paris.", "Et 河 ?", "这是河。")
    assert learned_text(row, tokenizer) == "À Paris.</s>这是河。</s>"


def test_an_answer_that_opens_the_dialogue_is_learned_without_the_templates_words(tokenizer):
    tokenizer.chat_template = SYSTEM_FIRST
    assert learned_text(dialogue("Bonjour", "Salut", first="assistant"), tokenizer) == "Bonjour</s>"


def test_tokenizers_without_offsets_give_the_same_marks(tokenizer, monkeypatch):
    row = dialogue("a", "b c", "d", "e")
    fast = encode([row], tokenizer, 1000).rows[0]
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    slow = encode([row], tokenizer, 1000).rows[0]
    assert fast.tokens.tolist() == slow.tokens.tolist()
    assert fast.learned.tolist() == slow.learned.tolist()


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = REWRITES
    with pytest.raises(InputError, match=r"row row: the chat template of .* rewrites earlier turns"):
        render(dialogue("a", "b", "c", "d"), tokenizer)


def test_cut_rows_are_counted_and_rows_without_labels_are_named(tokenizer):
    long = Row(id="long", language="en", task="math", messages=dialogue("q" * 90, "a").messages)
    cut = Row(id="cut", language="en", task="math", messages=dialogue("q", "a" * 90).messages)
    empty = Row(id="empty", language="en", task="math", messages=dialogue("q", "  ").messages)
    encoded = encode([long, cut, empty, dialogue("q", "a")], tokenizer, 50)
    assert [row.id for row in encoded.rows] == ["cut", "row"]
    assert max(len(row.tokens) for row in encoded.rows) == 50
    assert encoded.truncated == 2
    assert encoded.without_labels == ["long", "empty"]


def test_a_dataset_folder_gives_its_splits_in_order(make_dataset, tmp_path):
    source = find_files(make_dataset(tmp_path / "d", {"fr": (3, 1), "en": (2, 0)}))
    assert [row.id[:2] for row in source.rows("train")] == ["en", "en", "fr", "fr", "fr"]
    assert [row.id for row in source.rows("validation")] == ["fr-chat_specific-003"]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train-0", "train_sft-00000-of-00001", "training", "rows", "latest", "testament", "devanagari", "part-0"]),
        ("validation", ["validation-0", "valid", "val", "eval_1", "evaluation", "dev", "devset", "rows-dev-0"]),
        ("test", ["test-0", "TEST", "test_sft-00000-of-00001", "testset", "tests", "fr_test"]),
    ],
)
def test_a_file_is_of_the_split_that_its_name_says(split, names):
    assert {name: split_of(f"{name}.parquet") for name in names} == dict.fromkeys(names, split)


def test_a_test_split_is_never_read(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "d", {"fr": (3, 1)}) / "data" / "fr_chat_specific"
    (folder / "test-0.parquet").write_text("never opened")
    (folder / "validation-00000.parquet").rename(folder / "dev.parquet")
    source = find_files(tmp_path / "d")
    read = [[file.name for file in source.files(split)] for split in ("train", "validation")]
    assert read == [["train-00000.parquet"], ["dev.parquet"]]
    assert [file.name for file in source.test] == ["test-0.parquet"]
    with pytest.raises(InputError, match=r"no training rows \(test-0\.parquet is of the test split\)"):
        find_files(folder / "test-0.parquet")


def test_an_unfinished_dataset_is_refused(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "d", {"fr": (3, 1)}, finished=False)
    with pytest.raises(InputError, match=r"is not a finished dataset: it has no manifest\.json; run `glotloom build` again"):
        find_files(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        find_files(tmp_path / "empty")


def test_any_parquet_with_messages_will_do(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    table = pa.Table.from_pylist([{"language": "fr", "task": "math", "messages": messages, "more": 1}])
    pq.write_table(table, tmp_path / "rows.parquet")
    for place in (tmp_path, tmp_path / "rows.parquet"):
        (row,) = find_files(place).rows("train")
        assert (row.id, row.stratum, row.messages) == ("rows.parquet:0", "fr_math", messages)


def wrong(tmp_path, table: pa.Table):
    pq.write_table(table, tmp_path / "rows.parquet")
    return lambda: list(find_files(tmp_path / "rows.parquet").rows("train"))


def test_a_missing_column_is_named_with_its_file(tmp_path):
    read = wrong(tmp_path, pa.table({"id": ["a"], "language": ["fr"], "task": ["math"]}))
    with pytest.raises(InputError, match=r"rows\.parquet: no column 'messages'; it has id, language, task"):
        read()


def test_messages_of_another_type_are_refused(tmp_path):
    read = wrong(tmp_path, pa.table({"language": ["fr"], "task": ["math"], "messages": ["hello"]}))
    with pytest.raises(InputError, match=r"column 'messages' is string; expected list<struct<role, content>>"):
        read()


def test_an_unknown_role_is_named_with_its_row(tmp_path):
    turns = [{"role": "narrator", "content": "x"}]
    read = wrong(tmp_path, pa.Table.from_pylist([{"id": "r7", "language": "fr", "task": "math", "messages": turns}]))
    with pytest.raises(InputError, match=r"row r7: a turn with role 'narrator'; expected system, user, assistant"):
        read()


def test_a_turn_that_is_null_is_named_with_its_row(tmp_path):
    turn = pa.struct({"role": pa.string(), "content": pa.string()})
    columns = {"language": ["en"], "task": ["chat"], "messages": pa.array([[None]], pa.list_(turn))}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: row rows\.parquet:0: a turn with role None"):
        list(find_files(tmp_path).rows("train"))


@pytest.mark.parametrize("column", ["id", "language", "task", "messages"])
def test_a_row_that_is_not_utf8_is_dropped_by_name(tmp_path, caplog, column):
    def table(text: bytes) -> pa.Table:
        turn = pa.struct({"role": pa.string(), "content": pa.binary()})
        arrays = {name: [b"fr", text if name == column else b"fr"] for name in ("id", "language", "task")}
        columns = {name: pa.array(values, pa.binary()).view(pa.string()) for name, values in arrays.items()}
        turns = [[{"role": "user", "content": word}] for word in (b"ok", text if column == "messages" else b"ok")]
        messages = pa.array(turns, pa.list_(turn))
        strings = pa.StructArray.from_arrays(
            [messages.values.field(0), messages.values.field(1).view(pa.string())], ["role", "content"]
        )
        return pa.table({**columns, "messages": pa.ListArray.from_arrays(messages.offsets, strings)})

    pq.write_table(table(b"a\xff"), tmp_path / "rows.parquet")
    source = find_files(tmp_path)
    assert [row.id for row in source.rows("train")] == ["fr"]
    (line,) = caplog.messages
    name = "rows.parquet:1" if column == "id" else "fr"
    assert line.startswith(f"row {name}: {column} is not UTF-8 (") and line.endswith("; dropped")
    dropped = []
    list(source.rows("train", dropped))
    assert [row.id for row in dropped] == [name]


def test_a_damaged_page_is_told_with_its_file(tmp_path):
    file = tmp_path / "rows.parquet"
    turns = [[{"role": "user", "content": f"{number} {number * 7919}"}] for number in range(4000)]
    pq.write_table(pa.table({"language": ["en"] * 4000, "task": ["chat"] * 4000, "messages": turns}), file, compression="zstd")
    content = bytearray(file.read_bytes())
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.parquet: not a readable Parquet file"):
        list(find_files(tmp_path).rows("train"))


def test_what_is_no_parquet_or_not_there_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(find_files(tmp_path).rows("train"))
    with pytest.raises(InputError, match="no such file or folder"):
        find_files(tmp_path / "nowhere")


def test_the_fingerprint_follows_the_bytes(make_dataset, tmp_path):
    one = find_files(make_dataset(tmp_path / "one", {"fr": (3, 1)})).fingerprint()
    same = find_files(make_dataset(tmp_path / "two", {"fr": (3, 1)})).fingerprint()
    other = find_files(make_dataset(tmp_path / "three", {"fr": (2, 1)})).fingerprint()
    assert one == same != other


strata = st.dictionaries(st.sampled_from(["en_math", "fr_math", "zh_code", "ru_chat"]), st.integers(1, 30), min_size=1)


@settings(max_examples=80, deadline=None)
@given(sizes=strata, rows=st.integers(1, 200), temperature=st.floats(1, 8), seed=st.integers(0, 99))
def test_every_prefix_follows_the_shares_and_no_row_comes_twice_before_all_came_once(sizes, rows, temperature, seed):
    names = [name for name, size in sizes.items() for _ in range(size)]
    order = schedule(names, rows=rows, temperature=temperature, seed=seed)
    assert len(order) == rows
    assert order == schedule(names, rows=rows, temperature=temperature, seed=seed)
    wanted = dict(zip(sorted(sizes), shares([sizes[name] for name in sorted(sizes)], temperature), strict=True))
    drawn = Counter(names[index] for index in order)
    for name, size in sizes.items():
        assert abs(drawn[name] - rows * wanted[name]) <= len(sizes)
        mine = [index for index in order if names[index] == name]
        for begin in range(0, len(mine), size):
            cycle = mine[begin : begin + size]
            assert len(set(cycle)) == len(cycle)


def test_temperature_one_follows_the_sizes_and_a_high_one_evens_them_out():
    assert shares([1, 3], 1.0).tolist() == [0.25, 0.75]
    assert shares([1, 1000], 1000.0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_each_cycle_is_shuffled_anew():
    order = schedule(["a"] * 20, rows=40, temperature=1, seed=3)
    assert order[:20] != order[20:]


def test_lengths_are_sorted_inside_a_step_only():
    lengths = [5, 9, 1, 7]
    assert group_by_length([0, 1, 2, 3, 2, 0], lengths, 4) == [1, 3, 0, 2, 0, 2]
