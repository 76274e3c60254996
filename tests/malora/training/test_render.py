"""The spans of answers: measured one by one, or, in a long dialogue, by what stands around them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malora import InputError
from malora.training.data import Row
from malora.training.render import apply_template, render

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONLY_APPEND = {
    "chatml": CHATML,
    "trimmed": CHATML.replace("m['content']", "m['content'] | trim"),
    "none of its own": None,
    "instructions": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "numbered": "{% for m in messages %}{{ loop.index ~ ' ' + m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ (messages | length + 1) ~ ' assistant:' }}{% endif %}",
    "the close of every third turn stands before the next": (
        "{% for m in messages %}{% if loop.index0 % 3 == 1 %}{{ '|end|' }}{% endif %}{{ m['role'] + '>' + m['content'] }}"
        "{% if loop.index0 % 3 != 0 %}{{ '|end|' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '' }}{% endif %}"
    ),
    "contents twice": "{% for m in messages %}{{ m['role'] + m['content'] + '/' + m['content'] + '\n' }}{% endfor %}",
    "without empty turns": (
        "{% for m in messages if m['content'] | trim %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
    ),
    "changes contents": "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | replace('a', 'bb') + '\n' }}{% endfor %}",
}
REWRITE = {
    "counts the turns": "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}",
    "ends the last turn only": "{% for m in messages %}{{ m['role'] + m['content'] + ('</s>' if loop.last else '') }}{% endfor %}",
    "drops thoughts of earlier turns": (
        "{% for m in messages %}{{ '<' + m['role'] + '>' + (m['content'] if loop.last else m['content'].split('a')[-1]) + '\n' }}"
        "{% endfor %}"
    ),
    "shows the last turns": (
        "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if loop.revindex < 5 else '…') }}{% endfor %}"
    ),
    "puts the system's words into the last turn": (
        "{% for m in messages %}{{ m['role'] + ('Be kind.' if loop.revindex < 3 and m['role'] == 'user' else '') + m['content'] }}"
        "{% endfor %}"
    ),
}


def naive(row: Row, tokenizer):
    """The definition: each answer by the text up to and with it, and by the text before it, opened."""
    text = apply_template(row, row.messages, tokenizer)
    spans = []
    for index, turn in enumerate(row.messages):
        if turn["role"] != "assistant" or not turn["content"].strip():
            continue
        after = apply_template(row, row.messages[: index + 1], tokenizer)
        if index:
            before = apply_template(row, row.messages[:index], tokenizer, opened=True)
        else:
            before = after[: max(0, after.find(turn["content"].strip()))]
        if not (text.startswith(after) and after.startswith(before)):
            return "refused"
        spans.append((len(before), len(after.rstrip())))
    return text, spans


def outcome(row: Row, tokenizer):
    try:
        return render(row, tokenizer)
    except InputError as error:
        assert "rewrites earlier turns" in str(error)
        return "refused"


def dialogue(turns: list[tuple[str, str]]) -> Row:
    return Row(id="row", language="fr", task="chat", messages=[{"role": role, "content": content} for role, content in turns])


contents = st.text(alphabet="ab 1|>\n", max_size=5)
in_turn = st.lists(contents, min_size=9, max_size=40).map(
    lambda said: [(("user", "assistant")[n % 2], c) for n, c in enumerate(said)]
)
in_any_order = st.lists(st.tuples(st.sampled_from(["user", "assistant", "assistant", "system"]), contents), min_size=6, max_size=30)


@pytest.mark.parametrize("name", [*ONLY_APPEND, *REWRITE])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=in_turn | in_any_order)
def test_long_dialogues_have_the_spans_of_measuring_each_answer(tokenizer, name, turns):
    tokenizer.chat_template = (ONLY_APPEND | REWRITE)[name]
    row = dialogue(turns)
    assert outcome(row, tokenizer) == naive(row, tokenizer)


@pytest.mark.parametrize("name", REWRITE)
def test_a_template_that_rewrites_earlier_turns_is_refused_in_a_long_dialogue(tokenizer, name):
    tokenizer.chat_template = REWRITE[name]
    row = dialogue([(("user", "assistant")[n % 2], f"a word {n}") for n in range(60)])
    assert outcome(row, tokenizer) == "refused"


def test_eight_hundred_turns_are_rendered_in_a_few_times_the_whole_text(tokenizer, monkeypatch):
    tokenizer.chat_template = CHATML
    row = dialogue([(("user", "assistant")[n % 2], f"words of turn {n}") for n in range(800)])
    applied = []

    def counted(row, messages, *arguments, **options):
        applied.append(len(messages))
        return apply_template(row, messages, *arguments, **options)

    monkeypatch.setattr("malora.training.render.apply_template", counted)
    _, spans = render(row, tokenizer)
    assert len(spans) == 400
    assert sum(applied) < 10 * 800
