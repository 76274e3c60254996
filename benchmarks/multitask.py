"""Quality of MALoRA against LoRA, LoRA of equal size, MoLoRA and HydraLoRA on mixtures of tasks, at equal steps.

What it is, and what it is not:

- The base model is SmolLM2-135M-Instruct: small, mostly English, its weights rounded to 4 bits before they came here.
- Runs are short: 60 optimizer steps of 10 rows (inter, rank) or 5 rows (intra), rows of at most 192 tokens. What a
  longer training would do is not measured.
- Adapters sit on the last third of the layers only (20 to 29, all seven linears of each). The frozen layers below are
  computed once per row and their outputs kept on disk, the same for all variants.
- The frozen linears run in bfloat16, the residual stream and the adapters' parameters stay in float32. Held-out logits are
  computed in float32 from the last hidden states. A CPU without bfloat16 products multiplies the same rounded numbers in float32
  and rounds the result, which is what the others' hardware does: only the order of the sums differs.
- A row's loss is the mean over its answer tokens, a step's the mean over its rows, so that a label of three tokens weighs as
  much as an answer of 150. Mixtures add their load-balance loss (c = 0.001). Adam, linear warmup over a tenth of the
  steps, cosine down to 0, gradients clipped at norm 1. The scale of every variant is 16 / rank of its experts.
- Each learning rate was chosen once per variant on the inter-domain mixture, seed 0, two thirds of the steps, by the loss on
  validation rows that are not reported: 1e-3, 3e-3 and 3e-4 first, further while the best one is the outermost. The
  options of malora without a rate of their own use malora's. Intra and rank use the same rates.
- A seed decides which rows are trained, their order and the adapter's start; held-out rows are the same for all seeds.

Experiments:

- inter: AG News (topic), Amazon reviews (sentiment) and DBpedia (kind of entity) as label generation, GSM8K and English chat.
  Two rows of each task in every step. Held-out loss per answer token by task and its plain mean over the tasks; accuracy of the
  labels by greedy decoding among a task's labels.
- intra: chat in five languages, one row of each in every step. A held-out question is held out in every language.
- rank: the inter mixture with 80 training rows only, 40 steps (five passes), r = 8 and 64: training loss, held-out loss and
  the gap between them at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import malora  # before torch: it sets how OpenMP's threads wait
from malora.training.base_model import identify_base
from malora.training.data import Row
from malora.training.encode import encode

import numpy as np  # isort: skip
import torch  # isort: skip
from numpy.typing import NDArray  # isort: skip
from peft import get_peft_model  # isort: skip
from safetensors.torch import load_file, save_file  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention  # isort: skip
from torch.utils._python_dispatch import TorchDispatchMode  # isort: skip
from transformers import AttentionInterface, PreTrainedTokenizerBase  # isort: skip

CODE = 1  # part of every result's key: raise it when results are no longer comparable
FIRST_LAYER = 20
MAX_TOKENS = 192
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RESULTS = Path(__file__).parent / "results" / "multitask.jsonl"

LABELS = ("agnews", "amazon", "dbpedia")  # tasks whose answer is one of a few labels
TASKS = {"inter": (*LABELS, "gsm8k", "chat"), "intra": ("en", "zh", "ru", "fr", "es")}
FOLDERS = {"en": "english", "zh": "chinese", "ru": "russia", "fr": "french", "es": "spanish"}
ROWS = {  # rows per task: train (a seed takes some of them), validation (learning rates), heldout (reported)
    "inter": {"label": (240, 40, 100), "gsm8k": (240, 40, 50), "chat": (240, 40, 50)},
    "intra": {"chat": (150, 0, 40)},
}
ROWS_PER_TASK = {"inter": 2, "intra": 1}  # in one step
RANK_ROWS_PER_TASK = 16
ENGLISH_ONLY_QUESTION = 169  # of OMGEval's 805 English questions; the other languages lack it and move up by one

CORE = ("lora", "lora_equal", "moe_lora", "malora")
RANK = (*CORE, "malora_rslora")  # rsLoRA is a scale for high ranks
OPTIONS = ("hydra", "malora_shared_router", "malora_frozen", "malora_rslora", "malora_wide")
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"variant": "lora"},
    "lora_equal": {"variant": "lora"},  # its r is set so that it has malora's parameters
    "moe_lora": {"variant": "moe_lora"},
    "malora": {"variant": "malora"},
    "hydra": {"variant": "hydra"},
    "malora_shared_router": {"variant": "malora", "shared_router": True},
    "malora_frozen": {"variant": "malora", "freeze_shared": True},
    "malora_rslora": {"variant": "malora", "use_rslora": True},
    "malora_wide": {"variant": "malora", "expert_rank": 10, "shared_rank": 10},
}
TUNED = (*CORE, "hydra", "malora_rslora")  # the others use malora's learning rate
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_RATES = (1e-3, 3e-3, 3e-4)
EXPERIMENTS = ("inter", "intra", "rank", "options")
SECONDS = {"tune": 35.0, "inter": 60.0, "intra": 60.0, "rank": 60.0}  # of a run, until there are measured ones


@dataclass(frozen=True)
class Item:
    """A row ready for the upper layers. Position i predicts token i + 1, so the last token needs no hidden state."""

    task: str
    tokens: NDArray[np.int32]  # (length,)
    learned: NDArray[np.bool_]  # (length,)
    hidden: Tensor  # (length - 1, hidden size): what enters the first adapted layer


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; all of it is the key of its result."""

    experiment: str  # tune, inter, intra or rank
    variant: str
    r: int
    seed: int
    steps: int
    learning_rate: float

    @property
    def mixture(self) -> str:
        return "intra" if self.experiment == "intra" else "inter"

    def key(self, base: dict[str, str]) -> dict[str, Any]:
        return {
            "code": CODE,
            **asdict(self),
            "first_layer": FIRST_LAYER,
            "max_tokens": MAX_TOKENS,
            "rows": ROWS[self.mixture],
            "rows_per_task": ROWS_PER_TASK[self.mixture],
            "base": base,
        }


# --- rows ---------------------------------------------------------------------------------------------------------------


def read_inter(data: Path) -> dict[str, dict[str, list[Row]]]:
    """Part -> task -> rows, more than are needed."""
    parts: dict[str, dict[str, list[Row]]] = {"train": {}, "validation": {}, "heldout": {}}
    validation_rows = ROWS["inter"]["label"][1]
    for task in LABELS:
        train, dev = (_label_rows(data / "continual" / split / f"{task}.json", task, split) for split in ("train", "dev"))
        seen = {row.messages[1]["content"] for row in dev}
        parts["train"][task] = [row for row in train if row.messages[1]["content"] not in seen]
        parts["validation"][task] = dev[: 2 * validation_rows]
        parts["heldout"][task] = dev[2 * validation_rows :]
    solved = _gsm8k_rows(data / "gsm8k" / "train.jsonl")
    parts["train"]["gsm8k"], parts["validation"]["gsm8k"] = solved[:3000], solved[3000:4000]
    parts["heldout"]["gsm8k"] = _gsm8k_rows(data / "gsm8k" / "test.jsonl")
    for part, rows in _chat_rows(data, "en").items():
        parts[part]["chat"] = rows
    return parts


def read_intra(data: Path) -> dict[str, dict[str, list[Row]]]:
    """Part -> language -> rows; a question is in the same part in every language."""
    by_language = {language: _chat_rows(data, language) for language in TASKS["intra"]}
    return {part: {language: rows[part] for language, rows in by_language.items()} for part in ("train", "validation", "heldout")}


def _row(name: str, language: str, question: str, answer: str) -> Row:
    turns = (("system", ""), ("user", question), ("assistant", answer))  # no system prompt: it would cost 20 tokens a row
    messages = [{"role": role, "content": content} for role, content in turns]
    return Row(id=name, language=language, task="chat", messages=messages)


def _label_rows(file: Path, task: str, split: str) -> list[Row]:
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [
        _row(f"{task}-{split}-{number}", "en", row["instruction"] + row["input"], row["output"]) for number, row in enumerate(rows)
    ]


def _gsm8k_rows(file: Path) -> list[Row]:
    """Without the calculator's marks (<<48/2=24>>)."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        _row(f"gsm8k-{file.stem}-{number}", "en", row["question"], re.sub(r"<<.*?>>", "", row["answer"]))
        for number, row in enumerate(rows)
    ]


def _chat_rows(data: Path, language: str) -> dict[str, list[Row]]:
    rows = json.loads((data / "omgeval" / FOLDERS[language] / "gpt4.json").read_text(encoding="utf-8"))
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "heldout": []}
    numbered = [(question_number(index, language), row) for index, row in enumerate(rows)]
    for number, row in sorted(numbered, key=lambda pair: _hash(pair[0])):
        if row["output"].strip():
            parts[question_part(number)].append(_row(f"chat-{language}-{number}", language, row["instruction"], row["output"]))
    return parts


def question_number(index: int, language: str) -> int:
    """The number of OMGEval's parallel question at this index of a language's file: the index in the English one."""
    return index + (language != "en" and index >= ENGLISH_ONLY_QUESTION)


def question_part(number: int) -> str:
    """70 % of the questions are for training, 10 % for validation, 20 % held out; the same in every language."""
    share = _hash(number) % 100
    return "heldout" if share < 20 else "validation" if share < 30 else "train"


def _hash(number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"question {number}".encode()).digest()[:8], "big")


def fitting(
    rows: Sequence[Row], count: int, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """The first ``count`` rows that fit: labels and solutions whole, chats with 16 answer tokens or more after the cut."""
    chosen: list[tuple[NDArray[np.int32], NDArray[np.bool_]]] = []
    for row in rows:
        if len(chosen) == count:
            break
        encoded = encode([row], tokenizer, MAX_TOKENS)
        whole = not row.id.startswith("chat") and encoded.truncated
        if encoded.rows and not whole and (encoded.rows[0].learned.sum() >= 16 or not row.id.startswith("chat")):
            chosen.append((encoded.rows[0].tokens, encoded.rows[0].learned))
    if len(chosen) < count:
        raise ValueError(f"{rows[0].id if rows else 'no rows'} ...: {len(chosen)} rows fit, {count} are wanted")
    return chosen


# --- the model in two parts ---------------------------------------------------------------------------------------------


def attend_by_row(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, row_lengths: Sequence[int] = (), **options: Any
) -> tuple[Tensor, None]:
    """Causal attention inside each of the rows that stand one after the other: no padding and no mask.

    query (1, heads, tokens, size), key and value (1, fewer heads, tokens, size) -> (1, tokens, heads, size)
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=options.get("scaling"))
        for q, k, v in zip(*(torch.split(tensor, list(row_lengths), dim=2) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register("by_row", attend_by_row)


_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.addmm_.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class RoundedProducts(TorchDispatchMode):
    """Multiplies bfloat16 tensors in float32 and rounds the result, as bfloat16 hardware does. Where there is none, torch's own
    bfloat16 products take up to a hundred times as long."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = [arg.float() if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 else arg for arg in args]
        result = func(*wide, **(kwargs or {}))
        if func is _aten.addmm_.default:
            return args[0].copy_(result)
        if isinstance(result, Tensor):
            return result.to(torch.bfloat16)
        if func is _aten._scaled_dot_product_flash_attention_for_cpu.default:
            return result[0].to(torch.bfloat16), result[1]  # the sums of the softmax stay in float32
        return tuple(part.to(torch.bfloat16) for part in result)


def products() -> Any:
    """What a whole run happens in: nothing on a CPU with bfloat16 products, `RoundedProducts` elsewhere."""
    return contextlib.nullcontext() if torch.cpu._is_avx512_bf16_supported() else RoundedProducts()


@dataclass
class Base:
    """The frozen model cut in two, and its head."""

    trunk: Any  # token ids -> what enters the first adapted layer
    top: Any  # that -> last hidden states
    head: Tensor  # (vocabulary, hidden size), float32
    fast: bool  # bfloat16 linears
    head_fast: Tensor

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.fast)


def split_base(model: Any, first_layer: int, fast: bool) -> Base:
    """Cuts a Llama in front of ``first_layer``. The model given is used up."""
    model.requires_grad_(False).eval()
    head = model.lm_head.weight.detach()
    trunk = model.model
    trunk.config._attn_implementation = "by_row"
    top = copy.copy(trunk)  # another module around the same parts
    top._modules = dict(trunk._modules)
    top.layers = nn.ModuleList(trunk.layers[first_layer:])
    top.embed_tokens = nn.Embedding(1, trunk.config.hidden_size)
    trunk.layers = nn.ModuleList(trunk.layers[:first_layer])
    trunk.norm = nn.Identity()
    top.requires_grad_(False)
    return Base(trunk, top, head, fast, head.to(torch.bfloat16) if fast else head)


def bfloat16_linears(module: nn.Module) -> None:
    """Converts the frozen linears only: norms and the residual stream stay in float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)


def through(model: Any, lengths: Sequence[int], **inputs: Tensor) -> Tensor:
    """Rows one after the other through a part of the model. -> (tokens, hidden size)"""
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)  # (1, tokens)
    out: Tensor = model(**inputs, position_ids=positions, row_lengths=list(lengths), use_cache=False).last_hidden_state
    return out[0]


@torch.no_grad()
def trunk_outputs(base: Base, rows: Sequence[NDArray[np.int32]]) -> Tensor:
    """Of every token but a row's last. -> (tokens of all rows, hidden size), float16"""
    done: list[Tensor] = []
    for begin in range(0, len(rows), 12):
        tokens = [torch.from_numpy(row[:-1].astype(np.int64)) for row in rows[begin : begin + 12]]
        with base.autocast():
            hidden = through(base.trunk, [len(row) for row in tokens], input_ids=torch.cat(tokens).unsqueeze(0))
        done.append(hidden.to(torch.float16))
        if not bool(done[-1].isfinite().all()):
            raise ValueError("a hidden state of the trunk does not fit float16")
    return torch.cat(done)


Pool = dict[str, list[Item]]  # task -> items


def pools(
    mixture: str, data: Path, cache: Path, base: Base, tokenizer: PreTrainedTokenizerBase, model: dict[str, str]
) -> dict[str, Pool]:
    """Part -> task -> items, with the trunk's outputs from the cache or computed now."""
    read = read_inter if mixture == "inter" else read_intra
    rows: list[tuple[str, str, NDArray[np.int32], NDArray[np.bool_]]] = []
    for number, (part, by_task) in enumerate(read(data).items()):
        for task in TASKS[mixture]:
            kind = "label" if task in LABELS else "gsm8k" if task == "gsm8k" else "chat"
            chosen = fitting(by_task[task], ROWS[mixture][kind][number], tokenizer)
            rows += [(part, task, tokens, learned) for tokens, learned in chosen]
    digest = hashlib.sha256(json.dumps([CODE, FIRST_LAYER, base.fast, model], sort_keys=True).encode())
    for _, _, tokens, _ in rows:
        digest.update(tokens.tobytes() + b"|")
    file = cache / f"{mixture}-{digest.hexdigest()[:16]}.safetensors"
    if not file.exists():
        began = time.perf_counter()
        say(f"{mixture}: the trunk's outputs of {len(rows)} rows, {sum(len(row[2]) for row in rows)} tokens")
        hidden = trunk_outputs(base, [tokens for _, _, tokens, _ in rows])
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        save_file({"hidden": hidden}, unfinished)
        unfinished.rename(file)
        say(f"{mixture}: {file} in {time.perf_counter() - began:.0f} s")
    parts = torch.split(load_file(file)["hidden"], [len(tokens) - 1 for _, _, tokens, _ in rows])
    result: dict[str, Pool] = {part: {task: [] for task in TASKS[mixture]} for part in ("train", "validation", "heldout")}
    for (part, task, tokens, learned), hidden in zip(rows, parts, strict=True):
        result[part][task].append(Item(task, tokens, learned, hidden))
    return result


# --- training and measuring ---------------------------------------------------------------------------------------------


def adapter_settings(variant: str, r: int, base: Base) -> dict[str, Any]:
    """What of MaloraConfig the variant sets."""
    if variant == "lora_equal":
        report = malora.parameter_report(adapted(base, adapter_settings("malora", r, base), 0))
        return {"variant": "lora", "r": round(report.lora_rank_of_equal_size)}
    return {**VARIANTS[variant], "r": r}


def adapted(base: Base, settings: dict[str, Any], seed: int) -> Any:
    """A new PEFT model around a copy of the upper layers; adapters in float32."""
    config = malora.MaloraConfig(**settings, lora_alpha=16, target_modules=LINEARS, init_seed=seed)
    model: Any = get_peft_model(copy.deepcopy(base.top), config)
    if base.fast:
        for layer in model.base_model.adapted_layers().values():
            bfloat16_linears(layer.base_layer)
    return model


def answer_positions(items: Sequence[Item]) -> tuple[Tensor, Tensor, list[int]]:
    """Where answer tokens are predicted in the packed rows, those tokens, and how many each row has."""
    places, targets, counts, offset = [], [], [], 0
    for item in items:
        wanted = np.flatnonzero(item.learned[1:])  # position i predicts token i + 1
        places.append(wanted + offset)
        targets.append(item.tokens[wanted + 1])
        counts.append(len(wanted))
        offset += len(item.tokens) - 1
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(targets).astype(np.int64)), counts


def answer_hidden(model: Any, base: Base, items: Sequence[Item], places: Tensor) -> Tensor:
    """(answers, hidden size), float32"""
    inputs = torch.cat([item.hidden for item in items]).float().unsqueeze(0)  # (1, tokens, hidden size)
    with base.autocast():
        return through(model, [len(item.tokens) - 1 for item in items], inputs_embeds=inputs)[places]


def step_loss(model: Any, base: Base, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """The mean over the rows of each row's mean over its answer tokens, and the load-balance loss (0 without routers)."""
    places, targets, counts = answer_positions(items)
    with model.base_model.routing() as routing:
        hidden = answer_hidden(model, base, items, places)
    logits = linear(hidden.to(base.head_fast.dtype), base.head_fast).float()  # (answers, vocabulary)
    losses = cross_entropy(logits, targets, reduction="none")  # (answers)
    by_row = torch.stack([part.mean() for part in torch.split(losses, counts)])  # (rows)
    return by_row.mean(), routing.auxiliary_loss()


def step_rows(pool: Pool, *, steps: int, rows_per_task: int, seed: int, distinct: int | None = None) -> Iterator[list[Item]]:
    """The rows of each step, the same number of every task. ``distinct``: use so many rows of each task, again and again."""
    orders: dict[str, list[int]] = {}
    for number, task in enumerate(pool):
        random = np.random.Generator(np.random.PCG64([seed, number]))
        chosen = random.permutation(len(pool[task]))[:distinct]
        needed = math.ceil(steps * rows_per_task / len(chosen))
        orders[task] = [int(index) for _ in range(needed) for index in random.permutation(chosen)]
    for step in range(steps):
        places = range(step * rows_per_task, (step + 1) * rows_per_task)
        yield [pool[task][orders[task][place]] for place in places for task in pool]


def learning_rate_at(step: int, steps: int, top: float) -> float:
    """Linear warmup over a tenth of the steps, then a cosine down to 0."""
    warmup = max(1, round(0.1 * steps))
    if step < warmup:
        return top * (step + 1) / warmup
    return top * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(model: Any, base: Base, batches: Iterable[list[Item]], *, steps: int, learning_rate: float) -> dict[str, Any]:
    """Trains in place. -> tokens, seconds and the mean loss of the last tenth of the steps."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    began, tokens, losses = time.perf_counter(), 0, []
    for step, items in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, learning_rate)
        answer, balance = step_loss(model, base, items)
        optimizer.zero_grad(set_to_none=True)
        (answer + balance).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(answer.item())
        tokens += sum(len(item.tokens) for item in items)
        if not math.isfinite(losses[-1]):
            break  # a diverged run is a result as well
    last = losses[-max(1, steps // 10) :]
    return {"tokens": tokens, "train_seconds": round(time.perf_counter() - began, 2), "last_loss": sum(last) / len(last)}


@torch.no_grad()
def measure(model: Any, base: Base, pool: Pool) -> dict[str, Any]:
    """Task -> loss (nats per answer token), tokens, rows and, of labels, accuracy; ``mean``: of the tasks' losses."""
    model.eval()
    tasks: dict[str, Any] = {}
    for task, items in pool.items():
        total, count, right = 0.0, 0, 0
        labels = {tuple(item.tokens[item.learned].tolist()) for item in items} if task in LABELS else set()
        ordered = sorted(items, key=lambda item: len(item.tokens))
        for begin in range(0, len(ordered), 10):
            members = ordered[begin : begin + 10]
            places, targets, counts = answer_positions(members)
            logits = linear(answer_hidden(model, base, members, places), base.head)  # (answers, vocabulary)
            total += float(cross_entropy(logits, targets, reduction="none").double().sum())
            count += len(targets)
            if labels:
                parts = zip(torch.split(logits, counts), torch.split(targets, counts), strict=True)
                right += sum(decodes(rows, tuple(answer.tolist()), labels) for rows, answer in parts)
        tasks[task] = {"loss": total / count, "tokens": count, "rows": len(items)}
        if labels:
            tasks[task]["accuracy"] = right / len(items)
    return {"tasks": tasks, "mean": statistics.fmean(task["loss"] for task in tasks.values())}


def decodes(logits: Tensor, answer: tuple[int, ...], labels: set[tuple[int, ...]]) -> bool:
    """Whether greedy decoding among the labels gives this one. logits (tokens of the answer, vocabulary)

    Only the answer's own tokens need be looked at: decoding leaves its path at the first token that is not the best of
    those with which some label goes on.
    """
    for place, token in enumerate(answer):
        choices = sorted({label[place] for label in labels if label[:place] == answer[:place] and len(label) > place})
        if choices[int(logits[place, choices].argmax())] != token:
            return False
    return True


def perform(run: Run, base: Base, parts: dict[str, Pool]) -> dict[str, Any]:
    """Trains and measures one run."""
    began = time.perf_counter()
    torch.manual_seed(run.seed)
    settings = adapter_settings(run.variant, run.r, base) if run.variant != "base" else None
    model = base.top if settings is None else adapted(base, settings, run.seed)
    if settings is None and base.fast:
        model = copy.deepcopy(base.top)
        bfloat16_linears(model)
    distinct = RANK_ROWS_PER_TASK if run.experiment == "rank" else None
    rows_per_task = ROWS_PER_TASK[run.mixture]
    result: dict[str, Any] = {"adapter": settings, "trainable": 0}
    if settings is not None:
        result["trainable"] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        batches = step_rows(parts["train"], steps=run.steps, rows_per_task=rows_per_task, seed=run.seed, distinct=distinct)
        result |= train(model, base, batches, steps=run.steps, learning_rate=run.learning_rate)
    part = "validation" if run.experiment == "tune" else "heldout"
    result[part] = measure(model, base, parts[part])
    if run.experiment == "rank":
        trained: Pool = {task: [] for task in parts["train"]}
        passes = math.ceil(RANK_ROWS_PER_TASK / rows_per_task)
        for items in step_rows(parts["train"], steps=passes, rows_per_task=rows_per_task, seed=run.seed, distinct=distinct):
            for item in items:
                trained[item.task].append(item)
        result["train"] = measure(model, base, trained)
        result["gap"] = result["heldout"]["mean"] - result["train"]["mean"]
    return {**result, "seconds": round(time.perf_counter() - began, 2)}


# --- results, one JSON line each ----------------------------------------------------------------------------------------


class Results:
    """What was measured so far; a line that a kill cut off is forgotten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        if file.exists():
            content = file.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with file.open("r+b") as stream:
                    stream.truncate(len(whole))
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        wanted = json.loads(json.dumps(key))
        return next((line for line in self.lines if line["key"] == wanted), None)

    def add(self, key: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps({"key": key, **result}, sort_keys=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        line: dict[str, Any] = json.loads(text)
        self.lines.append(line)
        return line

    def seconds(self, experiment: str) -> float:
        """Of a run of this experiment: the mean of the finished ones."""
        finished = [line["seconds"] for line in self.lines if line["key"]["experiment"] == experiment and line["adapter"]]
        return statistics.fmean(finished) if finished else SECONDS[experiment]


@dataclass(frozen=True)
class Plan:
    """What is to be run: everything of a run but its learning rate."""

    experiment: str
    variant: str
    r: int
    seed: int
    steps: int


def plan(experiments: Sequence[str], seeds: int, steps: int) -> list[Plan]:
    """In the order of importance; learning rates are tuned when a variant first needs one."""
    plans: list[Plan] = []
    for experiment in experiments:
        if experiment == "rank":
            shorter = max(1, steps * 2 // 3)
            plans += [Plan("rank", name, r, seed, shorter) for r in (8, 64) for seed in range(seeds) for name in RANK]
        elif experiment == "options":
            plans += [Plan("inter", name, 8, seed, steps) for name in OPTIONS for seed in range(seeds)]
        else:
            plans.append(Plan(experiment, "base", 8, 0, 0))
            plans += [Plan(experiment, name, 8, seed, steps) for seed in range(seeds) for name in CORE]
    return plans


def tuned_as(variant: str) -> str:
    return variant if variant in TUNED else "malora"


def next_rate(tried: dict[float, float]) -> float | None:
    """The learning rate to try next, given the validation losses of those tried; None when the best one is inside."""
    for rate in FIRST_RATES:
        if rate not in tried:
            return rate
    best = RATES.index(min(tried, key=lambda rate: _finite(tried[rate])))
    beside = (RATES[place] for place in (best - 1, best + 1) if 0 <= place < len(RATES))
    return next((rate for rate in beside if rate not in tried), None)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


class Benchmark:
    """Does what is planned and not yet in the results."""

    def __init__(self, results: Results, data: Path, cache: Path, steps: int) -> None:
        self.results, self.data, self.cache, self.steps = results, data, cache, steps
        self.identity = identify_base("smollm2")
        self.base: Base | None = None
        self.tokenizer: Any = None
        self.parts: dict[str, dict[str, Pool]] = {}

    def tuning_run(self, variant: str, rate: float) -> Run:
        return Run(experiment="tune", variant=variant, r=8, seed=0, steps=max(1, self.steps * 2 // 3), learning_rate=rate)

    def tried(self, variant: str) -> dict[float, float]:
        """Learning rate -> validation loss, of the finished tuning runs."""
        lines = {rate: self.results.find(self.tuning_run(variant, rate).key(self.identity)) for rate in RATES}
        return {rate: line["validation"]["mean"] for rate, line in lines.items() if line}

    def learning_rate(self, variant: str) -> float:
        """Tuned now if need be."""
        variant = tuned_as(variant)
        while (rate := next_rate(self.tried(variant))) is not None:
            self.do(self.tuning_run(variant, rate))
        tried = self.tried(variant)
        return min(tried, key=lambda rate: _finite(tried[rate]))

    def run_of(self, item: Plan) -> Run | None:
        """None while its learning rate is not known."""
        tuned = item.variant == "base" or next_rate(self.tried(tuned_as(item.variant))) is None
        if not tuned:
            return None
        rate = 0.0 if item.variant == "base" else self.learning_rate(item.variant)
        return Run(**asdict(item), learning_rate=rate)

    def done(self, item: Plan) -> bool:
        run = self.run_of(item)
        return run is not None and self.results.find(run.key(self.identity)) is not None

    def do(self, run: Run) -> dict[str, Any]:
        key = run.key(self.identity)
        if (finished := self.results.find(key)) is not None:
            return finished
        base, parts = self._ready(run.mixture)
        line = self.results.add(key, perform(run, base, parts))
        measured = line.get("validation") or line["heldout"]
        rate = f"{line['tokens'] / line['train_seconds']:.0f} tokens/s" if line["adapter"] else "no training"
        say(
            f"{run.experiment} {run.variant} r={run.r} seed={run.seed} lr={run.learning_rate:g}: loss {measured['mean']:.4f}, "
            f"{line['seconds']:.0f} s, {rate}"
        )
        return line

    def _ready(self, mixture: str) -> tuple[Base, dict[str, Pool]]:
        if self.base is None:
            model, self.tokenizer = malora.load_base("smollm2")
            self.base = split_base(model, FIRST_LAYER, fast=True)
        if mixture not in self.parts:
            self.parts[mixture] = pools(mixture, self.data, self.cache, self.base, self.tokenizer, self.identity)
        return self.base, self.parts[mixture]

    def run_all(self, plans: Sequence[Plan]) -> None:
        for number, item in enumerate(plans):
            self.learning_rate(item.variant) if item.variant != "base" else None
            run = self.run_of(item)
            assert run is not None  # its learning rate is tuned
            self.do(run)
            left = self.estimate(plans[number + 1 :])
            say(f"{number + 1} of {len(plans)} planned runs done, about {left / 60:.0f} min left")

    def estimate(self, plans: Sequence[Plan]) -> float:
        """Seconds that the unfinished runs will take, with the tuning they need."""
        seconds = sum(self.results.seconds(item.experiment) for item in plans if not self.done(item))
        for variant in {tuned_as(item.variant) for item in plans if item.variant != "base"}:
            if next_rate(self.tried(variant)) is not None:
                seconds += self.results.seconds("tune") * max(1, len(FIRST_RATES) - len(self.tried(variant)))
        return seconds

    def dry_run(self, plans: Sequence[Plan]) -> Iterator[str]:
        for item in plans:
            state = "done" if self.done(item) else f"{self.results.seconds(item.experiment):.0f} s"
            yield f"{item.experiment:6} {item.variant:21} r={item.r:<3} seed={item.seed} steps={item.steps:<4} {state}"
        yield f"in all about {self.estimate(plans) / 60:.0f} min (with the tuning of learning rates, without the trunk's outputs)"


def say(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


# --- report -------------------------------------------------------------------------------------------------------------


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown tables of the results of the current code and the greatest number of steps of each experiment."""
    current = [line for line in lines if line["key"]["code"] == CODE]
    parts = [_tuning_table([line for line in current if line["key"]["experiment"] == "tune"])]
    for experiment, title in (("inter", "Inter-domain"), ("intra", "Intra-domain: chat in five languages")):
        rows = _longest([line for line in current if line["key"]["experiment"] == experiment])
        if rows:
            parts.append(_mixture_tables(title, rows, TASKS[experiment]))
    if rows := _longest([line for line in current if line["key"]["experiment"] == "rank"]):
        parts.append(_rank_table(rows))
    return "\n\n".join(part for part in parts if part) or "no results yet"


def _longest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    steps = max((line["key"]["steps"] for line in lines), default=0)
    return [line for line in lines if line["key"]["steps"] == steps or line["key"]["variant"] == "base"]


def spread(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """The mean and, of several values, the least and the greatest."""
    form = f"{'+' if sign else ''}.{digits}f"
    mean = format(statistics.fmean(values), form)
    return f"{mean} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else mean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _groups(lines: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Variant -> seed -> line, in the order of the variants."""
    groups: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in ("base", *VARIANTS)}
    for line in lines:
        groups[line["key"]["variant"]][line["key"]["seed"]] = line
    return {name: seeds for name, seeds in groups.items() if seeds}


def paired(group: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> list[float]:
    """Differences of the mean held-out losses, seed by seed."""
    return [group[seed]["heldout"]["mean"] - other[seed]["heldout"]["mean"] for seed in sorted(set(group) & set(other))]


def _against(name: str, groups: dict[str, dict[int, dict[str, Any]]]) -> str:
    if name in ("base", "lora_equal") or not (differences := paired(groups[name], groups.get("lora_equal", {}))):
        return ""
    return spread(differences, 4, sign=True)


def _tuning_table(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return ""
    losses: dict[str, dict[float, float]] = {}
    for line in _longest(lines):
        losses.setdefault(line["key"]["variant"], {})[line["key"]["learning_rate"]] = line["validation"]["mean"]
    rates = sorted({rate for tried in losses.values() for rate in tried})
    rows = []
    for variant in (name for name in VARIANTS if name in losses):
        best = min(losses[variant].values(), key=_finite)
        cells = [losses[variant].get(rate) for rate in rates]
        rows.append([variant, *("" if c is None else f"**{c:.4f}**" if c == best else f"{c:.4f}" for c in cells)])
    return "### Learning rates: validation loss, mean of the tasks\n\n" + table(["variant", *(f"{rate:g}" for rate in rates)], rows)


def _mixture_tables(title: str, lines: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    groups = _groups(lines)
    rows, accuracies = [], []
    labels = [task for task in tasks if task in LABELS]
    for name, group in groups.items():
        own = list(group.values())
        by_task = [f"{statistics.fmean(line['heldout']['tasks'][task]['loss'] for line in own):.3f}" for task in tasks]
        mean = spread([line["heldout"]["mean"] for line in own], 4)
        rate = f"{own[0]['key']['learning_rate']:g}" if own[0]["adapter"] else ""
        seeds = str(len(own)) if own[0]["adapter"] else ""
        rows.append([name, f"{own[0]['trainable']:,}", rate, seeds, *by_task, mean, _against(name, groups)])
        each = [[100 * line["heldout"]["tasks"][task]["accuracy"] for line in own] for task in labels]
        if labels:
            accuracies.append(
                [name, seeds, *(spread(values, 1) for values in each), spread([*map(statistics.fmean, zip(*each, strict=True))], 1)]
            )
    head = ["variant", "trainable", "learning rate", "seeds", *tasks, "mean of tasks", "minus lora_equal, paired"]
    told = "Means of the seeds finished (least to greatest); rows of unlike seeds compare by the last column only."
    text = f"### {title}: held-out loss, nats per answer token\n\n{told}\n\n{table(head, rows)}"
    if labels:
        text += f"\n\nAccuracy of the labels, per cent:\n\n{table(['variant', 'seeds', *labels, 'mean'], accuracies)}"
    return text


def _rank_table(lines: Sequence[dict[str, Any]]) -> str:
    rows = []
    for r in sorted({line["key"]["r"] for line in lines}):
        groups = _groups([line for line in lines if line["key"]["r"] == r])
        for name, group in groups.items():
            own = list(group.values())
            values = [spread([line["train"]["mean"] for line in own]), spread([line["heldout"]["mean"] for line in own])]
            gap = spread([line["gap"] for line in own])
            rows.append([str(r), name, f"{own[0]['trainable']:,}", *values, gap, _against(name, groups)])
    count = RANK_ROWS_PER_TASK * len(TASKS["inter"])
    head = ["r", "variant", "trainable", "training", "held-out", "gap", "held-out minus lora_equal, paired"]
    return f"### Few rows: training and held-out loss after training on {count} rows\n\n{table(head, rows)}"


# --- command line -------------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/multitask.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every finished run is appended to --out at once; start the same command again after a kill and it goes on. "
        "The same seed gives the same numbers on the same machine and number of threads.",
    )
    parser.add_argument("--experiment", choices=["all", *EXPERIMENTS], default="all", help="options: malora's, and hydra, on inter")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="of the experiment, only these (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument(
        "--steps", type=int, default=60, help="optimizer steps of inter and intra; tuning and rank: two thirds (default 60)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("GLOTLOOM_DATA"),
        help="folder with continual/, gsm8k/, omgeval/ (GLOTLOOM_DATA)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "glotloom-multitask",
        help="folder for the trunk's outputs, ~0.6 GB (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="results, one JSON line a run (default benchmarks/results/multitask.jsonl)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--report", action="store_true", help="print the tables of --out as Markdown and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and how long it may take")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    results = Results(asked.out)
    if asked.report:
        print(report(results.lines))
        return 0
    missing = [name for name in ("continual", "gsm8k", "omgeval") if asked.data is None or not (asked.data / name).is_dir()]
    if missing:
        print(
            f"skipped: no {missing[0]}/ in {asked.data or 'GLOTLOOM_DATA, which is not set'}; name the data with --data",
            file=sys.stderr,
        )
        return 0
    torch.set_num_threads(asked.threads)
    plans = plan(EXPERIMENTS if asked.experiment == "all" else [asked.experiment], asked.seeds, asked.steps)
    plans = [item for item in plans if asked.variants is None or item.variant in asked.variants]
    benchmark = Benchmark(results, asked.data, asked.cache, asked.steps)
    if asked.dry_run:
        print("\n".join(benchmark.dry_run(plans)))
        return 0
    with products():
        benchmark.run_all(plans)
    return 0


if __name__ == "__main__":
    sys.exit(main())
