"""The examples run as they stand, and stay short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.release import open_dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(example: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / example), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_60_lines(example: Path) -> None:
    assert len(example.read_text("utf-8").splitlines()) < 60


def test_build_from_jsonl_makes_a_dataset_in_two_languages(tmp_path: Path) -> None:
    told = run("build_from_jsonl.py", tmp_path)
    assert f"{tmp_path / 'dataset'}: en_chat_specific, fr_chat_specific" in told
    assert "fr_chat_specific, split train" in told
    assert open_dataset(tmp_path / "dataset").count("train") >= 2


def test_add_a_rule_leaves_rows_out_for_the_rules_reason(tmp_path: Path) -> None:
    told = run("add_a_rule.py", tmp_path)
    assert "dropped by rules: answer_too_long_for_children (" in told
    report = next(report for report in open_dataset(tmp_path / "dataset").reports if report.stage == "rules")
    assert 0 < report.dropped["answer_too_long_for_children"] < report.rows_in


@pytest.mark.slow
def test_train_on_messages_trains_an_adapter_that_peft_loads_and_serve_as_lora_exports(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    told = run("train_on_messages.py", tmp_path, tiny_base_model)
    assert "fr_math" in told and "trained parameters" in told
    assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= {
        p.name for p in (tmp_path / "adapter").iterdir()
    }
    from peft import LoraModel, PeftModel
    from transformers import AutoModelForCausalLM

    import malora

    def base() -> object:
        return AutoModelForCausalLM.from_pretrained(tiny_base_model)

    model = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert isinstance(model.base_model, malora.MaloraModel)

    loras = run("serve_as_lora.py", tmp_path)
    assert all(f"{language}: loss" in loras for language in ("en", "es", "fr"))
    assert isinstance(PeftModel.from_pretrained(base(), tmp_path / "lora-fr").base_model, LoraModel)
