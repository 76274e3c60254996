"""A model's logits where it is to predict an answer's token, and nowhere else."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

IGNORED = -100  # a label that is not learned, as everywhere in transformers


def answer_logits(model: nn.Module, batch: dict[str, Tensor], sliced: bool) -> tuple[Tensor, Tensor]:
    """Logits where an answer token is to be predicted, and those tokens: (answers, vocabulary), (answers).

    With ``sliced`` the model computes the logits only at positions where some row of the batch has an answer; over a
    vocabulary of 49,152 those of the questions would cost as much as several layers.
    """
    targets = batch["labels"][:, 1:]  # (batch, length - 1): position i predicts token i + 1
    options: dict[str, Any] = {"use_cache": False}
    if sliced:
        positions = (targets != IGNORED).any(dim=0).nonzero().flatten()  # (positions)
        options["logits_to_keep"] = positions
        targets = targets[:, positions]  # (batch, positions)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options).logits
    logits = logits[:, : targets.shape[1]]  # (batch, positions, vocabulary)
    wanted = targets != IGNORED
    if bool(wanted.all()):
        return logits.flatten(0, 1), targets.flatten()
    return logits[wanted], targets[wanted]


def can_slice(model: Any) -> bool:
    """Whether the base model computes logits at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
