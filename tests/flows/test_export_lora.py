"""`glotloom export-lora` through the real command: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Glotloom = Callable[..., Result]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Path:
    """A routed adapter with weights that do something, beside the record that a training leaves."""
    from peft import get_peft_model

    from malora import MaloraConfig, load_base

    model, _ = load_base(str(tiny_base_model))
    config = MaloraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, num_experts=4, init_weights=False)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    get_peft_model(model, config).save_pretrained(str(folder))
    record = {"format": 1, "base_model": {"name": str(tiny_base_model)}, "config": {"max_tokens": 300}}
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def the_line(result: Result) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("glotloom: ")


def test_without_data_every_expert_counts_alike_and_it_says_so(
    adapter: Path, tiny_base_model: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    done = glotloom("export-lora", adapter, "--out", tmp_path / "lora")
    assert done.exit_code == 0, done.output
    first, second, last = done.stdout.splitlines()
    assert first == f"{tmp_path / 'lora'}: a LoRA of rank 2 on 14 modules"
    assert second.startswith("every expert counts alike; --data DATASET")
    assert last == (
        f"serve it: vllm serve {tiny_base_model} --enable-lora --max-lora-rank 8 --lora-modules lora={tmp_path / 'lora'}"
    )
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    saved = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["r"], saved["base_model_name_or_path"]) == ("LORA", 2, str(tiny_base_model))
    assert glotloom("export-lora", adapter, "--out", tmp_path / "lora").stdout == done.stdout  # the same once more


def test_with_data_the_gates_are_those_of_its_rows_and_the_gap_is_told(
    adapter: Path, small_dataset: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    weights = {}
    for name, options in {"all": (), "math": ("--task", "math", "--language", "fr"), "few": ("--rows", 4)}.items():
        done = glotloom("export-lora", adapter, "--out", tmp_path / name, "--data", small_dataset, *options)
        assert done.exit_code == 0, done.output
        told = re.fullmatch(
            r"gates of (\d+) rows, measured on (\d+) others of the (?:training|validation) split: "
            r"loss [\d.]+ routed, [\d.]+ with fixed gates; "
            r"\d+ % of [\d,]+ tokens have the same most likely next token, KL [\d.]+ nats per token",
            done.stdout.splitlines()[1],
        )
        assert told is not None, done.stdout
        rows, held_out = int(told[1]), int(told[2])
        assert 1 <= held_out <= max(1, (rows + held_out) // 4)
        if name == "few":
            assert (rows, held_out) == (3, 1)
        weights[name] = (tmp_path / name / "adapter_model.safetensors").read_bytes()
    assert len(set(weights.values())) == 3


def test_the_exported_gates_are_the_means_over_the_answers(
    adapter: Path, small_dataset: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    from malora import answer_batches, export_lora, gate_rows, load_adapter, mean_gates

    assert glotloom("export-lora", adapter, "--out", tmp_path / "cli", "--data", small_dataset, "--rows", 8).exit_code == 0
    model, tokenizer = load_adapter(adapter)
    chosen = gate_rows(small_dataset, tokenizer, rows=8, max_tokens=300)
    export_lora(model, tmp_path / "python", mean_gates(model, answer_batches(chosen.gates)))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "python" / name).read_bytes()


def test_wrong_input_is_refused_in_one_line(
    adapter: Path, small_dataset: Path, tiny_base_model: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    out = tmp_path / "lora"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "unrecorded").mkdir()
    shutil.copytree(adapter, tmp_path / "damaged")
    (tmp_path / "damaged" / "training.json").write_text('{"format": 1, "base_model": {"name": "' + str(tiny_base_model) + '"}}')
    weights = tmp_path / "damaged" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:90])
    for arguments, told in {
        (adapter, "--out", out, "--language", "fr"): "--language: chooses among the rows of --data, which is not given",
        (
            adapter,
            "--out",
            out,
            "--data",
            small_dataset,
            "--language",
            "de",
        ): f"{small_dataset}: no row has language 'de'; there are en_",
        (adapter, "--out", out, "--data", tmp_path / "none"): f"{tmp_path / 'none'}: no such file or folder",
        (adapter, "--out", tmp_path / "thesis"): f"{tmp_path / 'thesis'}: holds something else (chapter.txt)",
        (adapter, "--out", adapter): f"{adapter}: holds something else (",
        (tmp_path / "unrecorded", "--out", out): f"{tmp_path / 'unrecorded'}: not an adapter",
        (tmp_path / "damaged", "--out", out): f"{tmp_path / 'damaged'}: adapter_model.safetensors is damaged",
    }.items():
        assert the_line(glotloom("export-lora", *arguments)).startswith(told)
    assert not out.exists()
    assert glotloom("export-lora", adapter, "--out", out, "--rows", 1).exit_code == 2


def test_an_export_with_other_gates_does_not_replace_one(
    adapter: Path, small_dataset: Path, tmp_path: Path, glotloom: Glotloom
) -> None:
    assert glotloom("export-lora", adapter, "--out", tmp_path / "lora").exit_code == 0
    before = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    line = the_line(glotloom("export-lora", adapter, "--out", tmp_path / "lora", "--data", small_dataset, "--rows", 4))
    assert line == f"{tmp_path / 'lora'}: holds another adapter; remove it or choose a new folder"
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == before
