"""Validation loss and use of the experts by language and task, and two examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase

from malora.adapter.balance import RoutingStatistics
from malora.adapter.logits import IGNORED, answer_logits, can_slice
from malora.adapter.model import measuring
from malora.training.data import Row
from malora.training.encode import EncodedRow
from malora.training.trainer import collate

Losses = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """``losses``: stratum, or ``all`` -> loss (nats per answer token), tokens, rows. ``routing``: RoutingStatistics.table()."""

    losses: Losses
    routing: dict[str, Any]


def evaluate(model: Any, rows: Sequence[EncodedRow], batch_size: int, on_batch: Callable[[int, int], None]) -> Evaluation:
    """Token-weighted cross-entropy over answer tokens, and which experts these tokens use (while adapters are on)."""
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.id))
    sums: dict[str, list[float]] = {}  # stratum -> loss, tokens, rows
    names = sorted({row.stratum for row in ordered})
    statistics = RoutingStatistics(names)
    sliced = can_slice(model)
    with measuring(model):
        for begin in range(0, len(ordered), batch_size):
            members = ordered[begin : begin + batch_size]
            batch = {key: value.to(model.device) for key, value in collate(members).items()}
            answers = batch["labels"] != IGNORED  # (batch, length)
            with model.base_model.routing(answers) as routing:
                losses = _row_losses(model, batch, sliced)  # (batch)
            statistics.add(routing, [names.index(row.stratum) for row in members])
            counts = answers.sum(dim=1).tolist()
            for row, loss, tokens in zip(members, losses.tolist(), counts, strict=True):
                for key in (row.stratum, "all"):
                    entry = sums.setdefault(key, [0.0, 0, 0])
                    entry[:] = [entry[0] + loss, entry[1] + tokens, entry[2] + 1]
            on_batch(min(begin + batch_size, len(ordered)), len(ordered))
    measured: Losses = {
        key: {"loss": loss / tokens, "tokens": int(tokens), "rows": int(count)}
        for key, (loss, tokens, count) in sorted(sums.items())
    }
    measured.setdefault("all", {"loss": None, "tokens": 0, "rows": 0})
    return Evaluation(measured, statistics.table())


def _row_losses(model: Any, batch: dict[str, Tensor], sliced: bool) -> Tensor:
    """Cross-entropy of each row, summed over its answer tokens. (batch), float64"""
    logits, targets = answer_logits(model, batch, sliced)  # (answers, vocabulary), (answers)
    losses = cross_entropy(logits.float(), targets, reduction="none").double()  # (answers)
    counts = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)  # (batch); answers stand row by row
    return torch.stack([part.sum() for part in torch.split(losses, counts.tolist())])


def generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
    """The model's greedy continuation of each prompt (its tokens), at most ``tokens`` tokens."""
    answers = []
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    with measuring(model):
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=model.device)  # (1, length)
            mask = torch.ones_like(ids)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
            answers.append(str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip())
    return answers


def pick_examples(rows: Sequence[Row], count: int = 2) -> list[Row]:
    """One row of each of ``count`` languages, English first, each of another task as far as there are others."""
    asked = [row for row in rows if any(turn["role"] == "assistant" for turn in row.messages[1:])]
    chosen: list[Row] = []
    for language in sorted({row.language for row in asked}, key=lambda code: (code != "en", code)):
        own = [row for row in asked if row.language == language]
        shown = {row.task for row in chosen}
        # the last task by name first: what is computed (math, code) can be told right from wrong at a glance
        chosen.append(max(own, key=lambda row: (row.task not in shown, row.task)))
    return (chosen + [row for row in asked if row not in chosen])[:count]
