"""A whole training on a tiny model: what it leaves behind, that it repeats, and that it survives being killed."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel, get_peft_model

import malora
from malora import InputError, MaloraConfig, TrainingConfig, load_adapter, load_base, train_adapter
from malora.training.encode import EncodedRow
from malora.training.run import _arguments
from malora.training.run_folder import RunFolder, fingerprint
from malora.training.trainer import MaloraTrainer, Scheduled, collate

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def config(base_folder) -> TrainingConfig:
    return TrainingConfig(
        base_model=str(base_folder),
        r=2,
        num_experts=4,
        learning_rate=2e-2,
        max_steps=12,
        batch_size=2,
        gradient_accumulation=2,
        max_tokens=64,
        save_steps=3,
        generation_tokens=4,
    )


@pytest.fixture
def dataset(make_dataset, tmp_path) -> Path:
    return make_dataset(tmp_path / "dataset", {"en": (12, 2), "fr": (6, 1), "zh": (3, 1)})


@pytest.mark.slow
def test_a_run_lowers_the_loss_and_reports_what_it_did(config, dataset, tmp_path):
    phases = []
    result = train_adapter(config, dataset, tmp_path / "out", progress=lambda *step: phases.append(step))
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert result.record == report
    assert not result.reused
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        ADAPTER,
        "training.json",
        "timings.json",
    }
    before, after = report["validation"]["before"], report["validation"]["after"]
    assert set(before) == {"all", "en_chat_specific", "fr_chat_specific", "zh_chat_specific"}
    assert all(after[name]["loss"] < before[name]["loss"] for name in before)
    assert before["all"]["tokens"] == sum(entry["tokens"] for name, entry in before.items() if name != "all")
    assert [line["step"] for line in report["loss"]] == list(range(1, 13))
    assert report["rows"] == {"train": 21, "validation": 4, "truncated": 0, "without_labels": [], "dropped": []}
    routing = report["routing"]
    assert routing["groups"] == ["en_chat_specific", "fr_chat_specific", "zh_chat_specific"]
    assert len(routing["modules"]) == len(routing["share"]) == len(routing["load"]) == len(routing["entropy"]) == 14
    for measure in ("share", "load"):
        assert all(sum(experts) == pytest.approx(1, abs=1e-4) for module in routing[measure] for experts in module)
    assert all(1 <= line["imbalance"] <= config.adapter().num_experts and 0 < line["entropy"] <= 1 for line in report["loss"])
    assert [example["language"] for example in report["generations"]] == ["en", "fr"]
    assert ("train", 12, 12) in phases
    model, _ = load_base(config.base_model)
    assert PeftModel.from_pretrained(model, tmp_path / "out").peft_config["default"].peft_type == "MALORA"
    load_adapter(tmp_path / "out")


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_and_a_finished_one_returns_at_once(config, dataset, tmp_path):
    first = train_adapter(config, dataset, tmp_path / "one")
    train_adapter(config, dataset, tmp_path / "two")
    for name in (ADAPTER, "adapter_config.json", "training.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = train_adapter(config, dataset, tmp_path / "one")
    assert again.reused
    assert again.record == first.record
    with pytest.raises(InputError, match="holds an adapter trained with other settings or data"):
        train_adapter(replace(config, seed=8), dataset, tmp_path / "one")
    other = train_adapter(replace(config, seed=8), dataset, tmp_path / "one", replace=True)
    assert other.record["fingerprint"] != first.record["fingerprint"]
    assert (tmp_path / "one" / ADAPTER).read_bytes() != (tmp_path / "two" / ADAPTER).read_bytes()


@pytest.mark.parametrize("library", ["torch", "transformers", "peft"])
def test_another_version_of_a_library_is_another_run(monkeypatch, library):
    version = importlib.metadata.version
    before = fingerprint(data="d")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == library else version(name))
    assert fingerprint(data="d") != before


def test_another_version_of_the_code_is_another_run(monkeypatch):
    before = fingerprint(data="d")
    monkeypatch.setattr("malora.training.run_folder.CODE_VERSION", 0)
    assert fingerprint(data="d") != before


def test_a_diverging_loss_is_told_in_one_line(config, dataset, tmp_path):
    with pytest.raises(
        InputError,
        match=r"^step \d+: the loss is (nan|inf)( and model.* holds values that are not finite)?; lower training\.learning_rate$",
    ):
        train_adapter(replace(config, learning_rate=1e30, generation_tokens=0), dataset, tmp_path / "out")


SCRIPT = """
import sys, time
from pathlib import Path
from malora import TrainingConfig, train_adapter
config = TrainingConfig(**eval(sys.argv[1]))
def progress(phase, done, total):
    print(phase, done, flush=True)
    if phase == sys.argv[4]:
        time.sleep(0.05)
train_adapter(config, Path(sys.argv[2]), Path(sys.argv[3]), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["train 4", "train 12", "validation after 2"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(config, dataset, tmp_path, moment):
    settings = repr({key: getattr(config, key) for key in config.__dataclass_fields__})
    phase = moment.rpartition(" ")[0]
    command = [sys.executable, "-c", SCRIPT, settings, str(dataset), str(tmp_path / "out"), phase]
    root = str(Path(malora.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == moment:
            time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "training.json").exists()
    said = []
    train_adapter(config, dataset, tmp_path / "out", log=said.append)
    assert any(line.startswith("goes on from checkpoint-") for line in said)
    train_adapter(config, dataset, tmp_path / "undisturbed")
    for name in (ADAPTER, "training.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_the_processes_of_one_training_prepare_its_folder_together(tmp_path):
    processes = multiprocessing.get_context("fork")
    together = processes.Barrier(3)

    def prepare() -> None:
        for number in range(40):
            (tmp_path / f"{number}" / ".checkpoints").mkdir(parents=True, exist_ok=True)  # of an older run, to be swept
            together.wait(20)
            RunFolder(tmp_path / f"{number}", "this run").prepare(replace=False)

    started = [processes.Process(target=prepare) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert all((tmp_path / f"{number}" / ".checkpoints" / "run.json").is_file() for number in range(40))


def test_a_kill_between_the_two_moves_of_a_finished_adapter_is_mended(tmp_path):
    folder = RunFolder(tmp_path / "out", "this run")
    folder.prepare(replace=False)
    adapter = folder.work / "adapter"
    adapter.mkdir()
    (adapter / ADAPTER).write_text("weights")
    (folder.out / "adapter_config.json").write_text("moved before the kill")

    folder.finish(adapter, {"fingerprint": "this run"}, {})

    assert folder.finished() == {"fingerprint": "this run"}
    assert (folder.out / "adapter_config.json").read_text() == "moved before the kill"


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    from malora.training.trainer import WHOLE, last_checkpoint

    for step in (2, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / WHOLE).touch()
    (tmp_path / "checkpoint-10" / WHOLE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


def encoded(length: int, seed: int) -> EncodedRow:
    import numpy as np

    random = np.random.default_rng(seed)
    learned = np.arange(length) >= length // 2
    return EncodedRow(f"{seed}", "en", "math", random.integers(1, 250, length).astype(np.int32), learned)


def test_the_loss_is_the_mean_over_answer_tokens_plus_the_auxiliary_loss(llama, config, tmp_path):
    """Two forward passes of unlike sizes give the gradients of one over all four rows."""
    rows = [encoded(length, length) for length in (20, 18, 9, 6)]

    def gradients(batch_size: int, accumulation: int) -> tuple[list[torch.Tensor], float]:
        model = get_peft_model(llama, MaloraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_weights=False))
        for layer in model.base_model.adapted_layers().values():
            layer.configs["default"].router_aux_loss_coef = 0.0
        settings = replace(config, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=1e-9)
        arguments = _arguments(settings, tmp_path / "work")
        arguments.max_steps, arguments.max_grad_norm, arguments.save_strategy = 1, 0.0, "no"
        arguments.logging_steps = 1
        trainer = MaloraTrainer(model, arguments, Scheduled(rows, [0, 1, 2, 3]), lambda *_: None)
        kept: list[torch.Tensor] = []
        hook = lambda *_: kept.extend(p.grad.clone() for p in model.parameters() if p.requires_grad)  # noqa: E731
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(hook)
        trainer.train()
        loss = trainer.state.log_history[0]["answer"]
        model.unload()
        return kept, loss

    whole, loss = gradients(4, 1)
    halves, loss_of_halves = gradients(2, 2)
    assert loss == pytest.approx(loss_of_halves, rel=1e-5)
    for one, two in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-7)
    batch = collate(rows)
    with torch.no_grad():
        logits = get_peft_model(llama, MaloraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_weights=False))(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    reference = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert loss == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.slow
def test_a_lora_of_equal_size_is_trained_beside_it_and_a_kill_in_between_costs_neither(config, dataset, tmp_path):
    beside = replace(config, baseline=True, shared_rank=3)
    phases = []

    def stop_in_the_baseline(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        if phase == "baseline: train" and done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_adapter(beside, dataset, tmp_path / "out", progress=stop_in_the_baseline)
    assert "train" in phases and not (tmp_path / "out" / "training.json").exists()
    phases.clear()
    record = train_adapter(beside, dataset, tmp_path / "out", progress=lambda phase, *_: phases.append(phase)).record
    assert phases and all(phase.startswith("baseline: ") for phase in phases)
    assert phases.count("baseline: train") == 6  # of twelve steps; it was checkpointed after the sixth
    baseline = record["baseline"]
    assert baseline["r"] == round(record["parameters"]["lora_rank_of_equal_size"]) > config.r
    assert baseline["validation"].keys() == record["validation"]["after"].keys()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", ADAPTER, "training.json", "timings.json"}
    by_itself = replace(config, variant="lora", num_experts=None, r=baseline["r"], generation_tokens=0)
    alone = train_adapter(by_itself, dataset, tmp_path / "alone").record
    assert (baseline["loss"], baseline["validation"]) == (alone["loss"], alone["validation"]["after"])
    without = train_adapter(replace(beside, baseline=False), dataset, tmp_path / "without").record
    assert "baseline" not in without and without["validation"] == record["validation"]
    assert (tmp_path / "out" / ADAPTER).read_bytes() == (tmp_path / "without" / ADAPTER).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["moe_lora", "hydra", "lora"])
def test_a_baseline_goes_through_the_same_training_and_report(config, dataset, tmp_path, variant):
    experts = None if variant == "lora" else 4
    short = replace(config, variant=variant, num_experts=experts, generation_tokens=0)
    record = train_adapter(short, dataset, tmp_path / "out").record
    assert record["adapter"]["variant"] == variant and record["adapter"]["num_experts"] == (experts or 1)
    assert record["validation"]["after"]["all"]["loss"] < record["validation"]["before"]["all"]["loss"]
    assert bool(record["routing"]["modules"]) == (variant != "lora")
    assert (record["loss"][0]["auxiliary"] == 0) == (variant == "lora")
    load_adapter(tmp_path / "out")


@pytest.mark.slow
def test_a_dataset_without_validation_rows_still_trains(config, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "d", {"en": (4, 0)})
    report = train_adapter(replace(config, max_steps=2), data, tmp_path / "out").record
    assert report["validation"]["before"] == {"all": {"loss": None, "tokens": 0, "rows": 0}}
    assert report["routing"]["modules"] == report["routing"]["groups"] == []
    assert len(report["generations"]) == 2


def damage(file: Path, rows: list[dict]) -> None:
    """Writes the rows; the content `not UTF-8` becomes bytes that are not."""
    pq.write_table(pa.Table.from_pylist(rows), file, compression="none", use_dictionary=False)
    content = file.read_bytes()
    assert b"not UTF-8" in content
    file.write_bytes(content.replace(b"not UTF-8", b"not UTF-\xff"))


def test_rows_that_cannot_be_used_are_dropped_by_name_and_training_goes_on(config, dataset, tmp_path):
    file = dataset / "data" / "en_chat_specific" / "train-00000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1]["messages"] = None
    rows[3]["messages"] = []
    rows[5]["messages"][0]["content"] = "not UTF-8"
    damage(file, rows)
    said: list[str] = []
    short = replace(config, max_steps=1, generation_tokens=2)
    record = train_adapter(short, dataset, tmp_path / "out", log=said.append).record
    assert record["rows"]["train"] == 18
    names = [rows[n]["id"] for n in (1, 3, 5)]
    assert [name for name, _ in record["rows"]["dropped"]] == names
    reasons = [reason for _, reason in record["rows"]["dropped"]]
    assert reasons[:2] == ["messages is null", "messages is empty"]
    assert reasons[2].startswith("messages is not UTF-8 (")
    assert [line for line in said if line.endswith("; dropped")] == [
        f"row {name}: {reason}; dropped" for name, reason in record["rows"]["dropped"]
    ]


def test_a_file_without_a_usable_row_is_refused(config, dataset, tmp_path):
    file = dataset / "data" / "en_chat_specific" / "train-00000.parquet"
    rows = [{**row, "messages": None} for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)
    with pytest.raises(InputError, match=r"none of its 12 rows can be used; the first, en-chat_specific-000: messages is null"):
        train_adapter(config, dataset, tmp_path / "out")


def test_an_output_folder_that_holds_something_else_is_refused(config, dataset, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(thesis\.tex\)"):
        train_adapter(config, dataset, out)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file stands where"):
        train_adapter(config, dataset, tmp_path / "file")
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_wrong_inputs_name_what_is_wrong(config, dataset, make_dataset, tmp_path):
    with pytest.raises(InputError, match=r"target_modules = \['w_q'\].*linear layers of this model: .*q_proj"):
        train_adapter(replace(config, target_modules=("w_q",)), dataset, tmp_path / "a")
    with pytest.raises(InputError, match=r"no row has an answer within the first 8 tokens; raise training\.max_tokens"):
        train_adapter(replace(config, max_tokens=8), dataset, tmp_path / "b")
    with pytest.raises(InputError, match=r"base_model = '\./nothing': no such folder"):
        train_adapter(replace(config, base_model="./nothing"), dataset, tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder holds no \*\.safetensors"):
        train_adapter(replace(config, base_model=str(tmp_path / "empty")), dataset, tmp_path / "d")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, r"training\.learning_rate = 0\.0: expected more than 0"),
        ({"learning_rate": "fast"}, r"training\.learning_rate = 'fast': expected float"),
        ({"learning_rate": float("nan")}, r"training\.learning_rate = nan"),
        ({"r": True}, r"training\.r = True: expected int"),
        ({"top_k": 9}, r"training\.top_k = 9: expected at most num_experts = 8"),
        ({"expert_rank": 4}, r"training\.expert_rank = 4: expected at least r = 8"),
        ({"expert_rank": 16, "shared_rank": 8}, r"training\.shared_rank = 8: expected at least expert_rank = 16"),
        ({"temperature": 0.5}, r"training\.temperature = 0\.5: expected at least 1"),
        ({"precision": "int4"}, r"training\.precision = 'int4': expected auto, float32 or bfloat16"),
        ({"target_modules": []}, r"training\.target_modules = \(\): expected"),
        ({"max_steps": 0}, r"training\.max_steps = 0: expected at least 1"),
    ],
)
def test_wrong_settings_name_key_value_and_expectation(wrong, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_changes_the_memory_not_the_adapter(config, dataset, tmp_path):
    short = replace(config, max_steps=2, generation_tokens=0)
    train_adapter(short, dataset, tmp_path / "plain")
    train_adapter(replace(short, gradient_checkpointing=True), dataset, tmp_path / "checkpointed")
    assert (tmp_path / "plain" / ADAPTER).read_bytes() == (tmp_path / "checkpointed" / ADAPTER).read_bytes()
