"""A tiny Llama, a byte tokenizer and a small dataset, all made on the spot: no download, no GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {"en": ["what", "is", "this", "river"], "fr": ["quelle", "est", "cette", "ville"], "zh": ["这", "是", "什么", "河"]}


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    settings = {
        "vocab_size": 260,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; 256 <s>, 257 </s>, 258 <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def rows_of(language: str, count: int, task: str = "chat_specific") -> list[dict[str, Any]]:
    words = WORDS[language]
    return [
        {
            "id": f"{language}-{task}-{number:03d}",
            "language": language,
            "task": task,
            "messages": [
                {"role": "user", "content": f"{words[number % 4]} {number}"},
                {"role": "assistant", "content": " ".join(words) + f" {number % 3}"},
            ],
        }
        for number in range(count)
    ]


def write_dataset(folder: Path, sizes: dict[str, tuple[int, int]], finished: bool = True) -> Path:
    """``sizes``: language -> rows for training, rows for validation."""
    for language, (train, validation) in sizes.items():
        place = folder / "data" / f"{language}_chat_specific"
        place.mkdir(parents=True)
        rows = rows_of(language, train + validation)
        pq.write_table(pa.Table.from_pylist(rows[:train]), place / "train-00000.parquet")
        if validation:
            pq.write_table(pa.Table.from_pylist(rows[train:]), place / "validation-00000.parquet")
    if finished:
        (folder / "manifest.json").write_text(json.dumps({}))
    return folder


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """The tiny model as a local folder, as ``base_model`` takes it."""
    folder = tmp_path / "base"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
