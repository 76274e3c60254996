"""transformers' Trainer with the load-balance loss, the fixed schedule and checkpoints that are whole or absent."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from malora.adapter.balance import Routing, RoutingStatistics
from malora.adapter.logits import IGNORED, answer_logits, can_slice
from malora.adapter.model import MaloraModel
from malora.errors import InputError
from malora.training.encode import EncodedRow

WHOLE = "whole"  # stands in a checkpoint's folder once everything else does


class Scheduled(Dataset[EncodedRow]):
    """The rows in the order in which they are trained."""

    def __init__(self, rows: Sequence[EncodedRow], order: Sequence[int]) -> None:
        self.rows = rows
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> EncodedRow:
        return self.rows[self.order[index]]


def collate(rows: Sequence[EncodedRow], strata: Sequence[str] = ()) -> dict[str, Tensor]:
    """A batch, padded on the right. ids, attention_mask, labels (batch, length); labels[:, 0] is never learned.

    With ``strata`` also each row's index among them, ``stratum`` (batch).
    """
    length = max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        size = len(row.tokens)
        ids[number, :size] = row.tokens
        mask[number, :size] = 1
        labels[number, :size] = np.where(row.learned, row.tokens, IGNORED)
    labels[:, 0] = IGNORED
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }
    if strata:
        batch["stratum"] = torch.tensor([strata.index(row.stratum) for row in rows])
    return batch


class MaloraTrainer(Trainer):
    """Trains on the assistant's tokens and keeps the experts evenly used."""

    def __init__(self, model: Any, args: TrainingArguments, dataset: Scheduled, on_step: Callable[[int, int], None]) -> None:
        self.strata = sorted({row.stratum for row in dataset.rows})
        super().__init__(model=model, args=args, train_dataset=dataset, data_collator=partial(collate, strata=self.strata))
        self.tuner: MaloraModel = model.base_model
        self.sliced = can_slice(model)
        self.model_accepts_loss_kwargs = True  # the loss below divides by num_items_in_batch itself
        self.logged: dict[str, Tensor | float] = {"answer": 0.0, "auxiliary": 0.0}  # summed since the last line
        self.routing: Routing | None = None
        self.statistics = RoutingStatistics(self.strata)  # of the steps since the last line
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_StepCallback(on_step))

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """The schedule is the order."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The routing block stays open until after backward, as gradient checkpointing needs it."""
        with self.tuner.routing(inputs["attention_mask"]) as self.routing:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.statistics.add(self.routing, inputs["stratum"])
        self.routing = None
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """``(sum of cross-entropies + answer tokens * auxiliary loss) / answer tokens of the whole optimizer step``.

        So the auxiliary loss of each forward pass weighs as much as its share of the step's tokens, and gradients are
        the same however a step is cut into forward passes, up to the balance being measured per pass.
        """
        logits, targets = answer_logits(model, inputs, self.sliced)
        items = targets.numel() if num_items_in_batch is None else num_items_in_batch
        answer = cross_entropy(logits.float(), targets, reduction="sum") / items
        assert self.routing is not None  # training_step has opened it
        auxiliary = self.routing.auxiliary_loss() * (targets.numel() / items)
        self.logged["answer"] += answer.detach()  # no .item(): a GPU would have to wait
        self.logged["auxiliary"] += auxiliary.detach()
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = (answer + auxiliary) * processes  # gradients are averaged over the processes
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the two parts of the loss and how the routers did, as means over the steps since the last line."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                broken = _first_broken(self.tuner)
                raise InputError(f"step {self.state.global_step}: the loss is {logs['loss']}{broken}; lower training.learning_rate")
            steps = self.state.global_step % self.args.logging_steps or self.args.logging_steps
            logs = {**logs, **{key: float(value) / steps for key, value in self.logged.items()}}
            logs |= self.statistics.summary()
            self.logged = dict.fromkeys(self.logged, 0.0)
            self.statistics = RoutingStatistics(self.strata)
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            (folder / WHOLE).touch()


def _first_broken(tuner: MaloraModel) -> str:
    """Which tensor of the adapter is no longer a number, if one is."""
    for name, parameter in tuner.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            return f" and {name.removeprefix('model.')} holds values that are not finite"
    return ""


class _StepCallback(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those that a kill left half-written are removed."""
    newest = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (path / WHOLE).exists():
            newest = path
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it, too
    return newest
