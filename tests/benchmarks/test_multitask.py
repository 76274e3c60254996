"""The quality benchmark's parts on a tiny random Llama; its data and SmolLM2 are not needed."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

FILE = Path(__file__).parents[2] / "benchmarks" / "multitask.py"
spec = importlib.util.spec_from_file_location("benchmark_multitask", FILE)
multitask = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = multitask
spec.loader.exec_module(multitask)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=3, **shape, tie_word_embeddings=True)).eval()


def items_of(base, task: str, count: int, seed: int = 0) -> list:
    random = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        tokens = random.integers(0, 40, random.integers(5, 12)).astype(np.int32)
        learned = np.arange(len(tokens)) >= len(tokens) - random.integers(1, 4)
        items.append(multitask.Item(task, tokens, learned, multitask.trunk_outputs(base, [tokens])))
    return items


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on matrices this small, above all where other processes share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base():
    return multitask.split_base(llama(), 1, fast=False)


@pytest.fixture
def pool(base):
    return {"agnews": items_of(base, "agnews", 4), "chat": items_of(base, "chat", 6, seed=1)}


def test_trunk_and_top_over_packed_rows_equal_the_whole_model_row_by_row(base):
    whole = llama()
    random = np.random.default_rng(0)
    rows = [random.integers(0, 40, length) for length in (7, 2, 11)]
    lengths = [len(row) for row in rows]
    with torch.no_grad():
        hidden = multitask.through(base.trunk, lengths, input_ids=torch.from_numpy(np.concatenate(rows))[None])
        assert not torch.allclose(hidden, multitask.through(base.top, lengths, inputs_embeds=hidden[None]))
        logits = multitask.through(base.top, lengths, inputs_embeds=hidden[None]) @ base.head.T
        naive = torch.cat([whole(input_ids=torch.from_numpy(row)[None]).logits[0] for row in rows])
    torch.testing.assert_close(logits, naive, atol=1e-5, rtol=1e-5)


def test_measured_losses_equal_the_whole_models(base, pool):
    measured = multitask.measure(base.top, base, pool)
    for task, items in pool.items():
        total, count = 0.0, 0
        for item in items:
            with torch.no_grad():
                predicted = log_softmax(llama()(input_ids=torch.from_numpy(item.tokens.astype(np.int64))[None]).logits[0], dim=-1)
            for place in np.flatnonzero(item.learned):
                total -= float(predicted[place - 1, int(item.tokens[place])])
                count += 1
        assert measured["tasks"][task]["tokens"] == count
        assert measured["tasks"][task]["loss"] == pytest.approx(total / count, abs=2e-3)  # the trunk's outputs are float16
    assert measured["mean"] == pytest.approx(sum(task["loss"] for task in measured["tasks"].values()) / 2)
    assert "accuracy" in measured["tasks"]["agnews"]
    assert "accuracy" not in measured["tasks"]["chat"]


def test_greedy_decoding_among_labels_equals_walking_them():
    labels = {(1, 9), (2, 1, 9), (2, 3, 9), (4, 9)}
    right = 0
    for seed in range(200):
        scores = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed))
        walked: tuple[int, ...] = ()
        while walked not in labels:
            choices = {label[len(walked)] for label in labels if label[: len(walked)] == walked}
            walked += (max(choices, key=lambda token: float(scores[len(walked), token])),)
        for label in labels:
            assert multitask.decodes(scores, label, labels) == (label == walked)
        right += walked[0] == 2
    assert 0 < right < 200


@pytest.mark.parametrize("variant", multitask.VARIANTS)
def test_every_variant_learns_and_repeats_itself(base, pool, variant):
    settings = multitask.adapter_settings(variant, 2, base)
    results = []
    for seed in (1, 1, 2):
        model = multitask.adapted(base, {"num_experts": 4, **settings} if settings["variant"] != "lora" else settings, seed)
        torch.testing.assert_close(multitask.measure(model, base, pool), multitask.measure(base.top, base, pool))  # the identity
        batches = list(multitask.step_rows(pool, steps=8, rows_per_task=2, seed=seed))
        trained = multitask.train(model, base, batches, steps=8, learning_rate=1e-2)
        assert trained["tokens"] == sum(len(item.tokens) for items in batches for item in items)
        results.append((trained["last_loss"], multitask.measure(model, base, pool)))
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert results[0][1]["mean"] < multitask.measure(base.top, base, pool)["mean"]


def test_lora_of_equal_size_has_malora_s_parameters(base):
    def trainable(variant: str, r: int) -> int:
        model = multitask.adapted(base, multitask.adapter_settings(variant, r, base), 0)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    one_rank = trainable("lora", 3) - trainable("lora", 2)
    assert abs(trainable("lora_equal", 2) - trainable("malora", 2)) <= one_rank / 2


def test_a_step_has_as_many_rows_of_every_task_and_few_rows_come_again_and_again(pool):
    steps = list(multitask.step_rows(pool, steps=6, rows_per_task=2, seed=0, distinct=3))
    seen = {task: [id(item) for items in steps for item in items if item.task == task] for task in pool}
    assert all([item.task for item in items].count(task) == 2 for items in steps for task in pool)
    for ids in seen.values():
        assert len(ids) == 12
        assert len(set(ids)) == 3
        assert len(set(ids[:3])) == len(set(ids[3:6])) == 3  # a whole pass before the next one
    assert seen != {
        task: [
            id(i)
            for items in multitask.step_rows(pool, steps=6, rows_per_task=2, seed=1, distinct=3)
            for i in items
            if i.task == task
        ]
        for task in pool
    }


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [multitask.learning_rate_at(step, 60, 1.0) for step in range(60)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_tuning_goes_on_while_the_best_rate_is_the_outermost():
    def search(loss) -> list[float]:
        tried: dict[float, float] = {}
        while (rate := multitask.next_rate(tried)) is not None:
            tried[rate] = loss(rate)
        return list(tried)

    assert search(lambda rate: abs(math.log(rate / 1e-3))) == [1e-3, 3e-3, 3e-4]
    assert search(lambda rate: -rate) == [1e-3, 3e-3, 3e-4, 1e-2, 3e-2]
    assert search(lambda rate: rate) == [1e-3, 3e-3, 3e-4, 1e-4]
    assert search(lambda rate: math.nan if rate > 1e-3 else -rate) == [1e-3, 3e-3, 3e-4]  # what diverges is not the best


def test_a_parallel_question_is_held_out_in_every_language(tmp_path):
    for language, folder in multitask.FOLDERS.items():
        numbers = [number for number in range(805) if language == "en" or number != multitask.ENGLISH_ONLY_QUESTION]
        rows = [{"instruction": f"question {number}", "output": f"answer in {language}"} for number in numbers]
        place = tmp_path / "omgeval" / folder
        place.mkdir(parents=True)
        (place / "gpt4.json").write_text(json.dumps(rows))
    parts = multitask.read_intra(tmp_path)
    asked = {part: {code: {row.messages[1]["content"] for row in rows} for code, rows in by.items()} for part, by in parts.items()}
    everywhere = {part: set.union(*by.values()) for part, by in asked.items()}
    assert not everywhere["train"] & everywhere["heldout"]
    assert not everywhere["train"] & everywhere["validation"]
    assert not everywhere["validation"] & everywhere["heldout"]
    assert sum(len(questions) for questions in everywhere.values()) == 805
    assert (
        asked["heldout"]["zh"] == asked["heldout"]["fr"] == asked["heldout"]["en"] - {f"question {multitask.ENGLISH_ONLY_QUESTION}"}
    )
    assert all(row.messages[2]["content"] == "answer in ru" for row in parts["train"]["ru"])


def test_a_line_that_a_kill_cut_off_is_forgotten(tmp_path):
    file = tmp_path / "results.jsonl"
    results = multitask.Results(file)
    results.add({"seed": 0, "rows": (1, 2)}, {"loss": 1.5})
    results.add({"seed": 1}, {"loss": 2.5})
    file.write_bytes(file.read_bytes()[:-5])
    again = multitask.Results(file)
    assert again.find({"seed": 0, "rows": (1, 2)})["loss"] == 1.5
    assert again.find({"seed": 1}) is None
    again.add({"seed": 1}, {"loss": 3.5})
    assert [line["loss"] for line in multitask.Results(file).lines] == [1.5, 3.5]


def benchmark(tmp_path, monkeypatch, losses) -> tuple:
    """A benchmark whose runs take no time and give ``losses(run)``; and the runs it has performed."""
    performed = []

    def perform(run, base, parts):
        performed.append(run)
        task = {"loss": losses(run), "tokens": 1, "rows": 1}
        tasks = {name: {**task, **({"accuracy": 0.5} if name in multitask.LABELS else {})} for name in multitask.TASKS[run.mixture]}
        part = {"tasks": tasks, "mean": losses(run)}
        adapter = None if run.variant == "base" else {"r": run.r}
        own = (
            {"validation": part}
            if run.experiment == "tune"
            else {"heldout": part, "train": {**part, "mean": 1.0}, "gap": losses(run) - 1}
        )
        return {"adapter": adapter, "trainable": 100, "tokens": 10, "train_seconds": 1.0, "seconds": 1.0, **own}

    monkeypatch.setattr(multitask, "perform", perform)
    monkeypatch.setattr(multitask, "identify_base", lambda name: {"name": name})
    monkeypatch.setattr(multitask.Benchmark, "_ready", lambda self, mixture: (None, None))
    return multitask.Benchmark(multitask.Results(tmp_path / "out.jsonl"), tmp_path, tmp_path, 60), performed


def test_a_killed_benchmark_goes_on_and_every_variant_has_its_own_rate(tmp_path, monkeypatch):
    def losses(run) -> float:
        return abs(math.log(run.learning_rate / (1e-3 if run.variant == "lora" else 3e-3))) if run.experiment == "tune" else 1.0

    bench, performed = benchmark(tmp_path, monkeypatch, losses)
    plans = multitask.plan(multitask.EXPERIMENTS, 3, 60)
    assert any(line.endswith(" s") for line in bench.dry_run(plans))
    assert not performed
    bench.run_all(plans[:9])
    first = len(performed)
    bench, performed = benchmark(tmp_path, monkeypatch, losses)
    bench.run_all(plans)
    assert len(bench.results.lines) == first + len(performed) == len({json.dumps(line["key"]) for line in bench.results.lines})
    rates = {run.variant: run.learning_rate for run in performed if run.experiment == "rank"}
    assert rates == {"lora": 1e-3, "lora_equal": 3e-3, "moe_lora": 3e-3, "malora": 3e-3, "malora_rslora": 3e-3}
    assert not any(run.experiment == "tune" and run.variant == "malora_wide" for run in performed)
    assert all(line.endswith("done") for line in list(bench.dry_run(plans))[:-1])
    assert bench.estimate(plans) == 0


def test_the_report_pairs_the_seeds(tmp_path, monkeypatch):
    level = {"base": 9.0, "lora": 2.0, "lora_equal": 1.5, "moe_lora": 1.25, "malora": 1.0, "malora_rslora": 1.0}

    def losses(run) -> float:
        return level[run.variant] + run.seed * (1 if run.variant == "malora" else 2) / 10

    bench, _ = benchmark(tmp_path, monkeypatch, losses)
    bench.run_all(multitask.plan(("inter", "intra", "rank"), 3, 60))
    text = multitask.report(bench.results.lines)
    inter = text.partition("### Inter-domain")[2].partition("###")[0]
    line = next(line for line in inter.splitlines() if line.startswith("| malora "))
    assert "1.1000 (1.0000 to 1.2000)" in line
    assert "-0.6000 (-0.7000 to -0.5000)" in line
    assert "| lora_equal | 100 |" in inter
    assert "50.0 (50.0 to 50.0)" in inter
    assert text.count("| 64 | malora | 100 | 1.000 (1.000 to 1.000) | 1.100 (1.000 to 1.200) | 0.100 (0.000 to 0.200) |") == 1
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({row.count("|") for row in block.splitlines()}) == 1


def test_without_data_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GLOTLOOM_DATA", raising=False)
    assert multitask.main(["--out", str(tmp_path / "out.jsonl")]) == 0
    assert "GLOTLOOM_DATA" in capsys.readouterr().err
    assert multitask.main(["--out", str(tmp_path / "out.jsonl"), "--data", str(tmp_path)]) == 0
    assert "continual" in capsys.readouterr().err
    assert multitask.main(["--report", "--out", str(tmp_path / "out.jsonl")]) == 0
    assert "no results yet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        multitask.main(["--help"])
    assert "at equal steps" in capsys.readouterr().out
