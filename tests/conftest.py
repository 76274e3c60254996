"""What several rooms' tests share: a small recipe, the command line run in this process, and one built dataset."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK"):
    os.environ.setdefault(name, "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; the programs under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_RECIPE = """
name = "small"
languages = ["fr", "en"]

[knowledge.fr]
kind = "wikipedia-dump"
path = "sample:knowledge/frwiki-sample.xml.bz2"
min_tokens = 100
segment_tokens = 1000
licence = "CC0 1.0"

[[dialogues.fr]]
mode = "reverse"

[agnostic.math]
path = "sample:agnostic/math.jsonl"
budget = { en = "all", fr = 5 }
licence = "CC0 1.0"
"""

Glotloom = Callable[..., Result]


@pytest.fixture(scope="session")
def small_recipe() -> str:
    """Two languages and two tasks of the sample data, without a teacher: built in a second or two."""
    return SMALL_RECIPE


@pytest.fixture(scope="session")
def glotloom() -> Glotloom:
    """`glotloom("build", path, "--out", folder)` runs the command in this process."""
    from flows.cli import main

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="glotloom")

    return run


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, glotloom: Glotloom) -> Path:
    """The dataset of the small recipe; read it, do not change it."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(SMALL_RECIPE)
    result = glotloom("build", folder / "small.toml", "--out", folder / "dataset")
    assert result.exit_code == 0, result.output
    return folder / "dataset"


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Llama of two narrow layers over bytes, made on the spot: a base model to train on in seconds."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny-base-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
