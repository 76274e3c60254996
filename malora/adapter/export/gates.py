"""One set of gates for all tokens: the router's own averaged over some rows, and what it costs to fix them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from malora.adapter.core import gate
from malora.adapter.logits import IGNORED, answer_logits, can_slice
from malora.adapter.model import Gates, MaloraModel, measuring
from malora.errors import InputError

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RoutingGap:
    """The token-routed model beside the same model with fixed gates, over the same tokens. Losses in nats per token."""

    loss_routed: float
    loss_fixed: float
    kl: float  # KL(routed || fixed) of the next token, mean over the tokens, in nats
    agreement: float  # share of the tokens for which both find the same next token most likely
    tokens: int

    @property
    def difference(self) -> float:
        """What fixing the gates costs; negative where the fixed gates predict better."""
        return self.loss_fixed - self.loss_routed

    def __str__(self) -> str:
        return (
            f"loss {self.loss_routed:.3f} routed, {self.loss_fixed:.3f} with fixed gates; {100 * self.agreement:.0f} % of "
            f"{self.tokens:,} tokens have the same most likely next token, KL {self.kl:.4f} nats per token"
        )


def tuner_of(model: Any, adapter: str | None = None) -> tuple[MaloraModel, str]:
    """The tuner of a PeftModel, and the adapter asked for, by default the active one."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, MaloraModel):
        kind = type(model).__name__ if base is None else f"{type(model).__name__} with {type(base).__name__}"
        raise InputError(f"expected a PeftModel with an adapter of malora (MaloraConfig), and this is a {kind}")
    if adapter is None:
        return base, base.active_adapter_name()
    if adapter not in base.peft_config:
        raise InputError(f"the model has no adapter {adapter!r}; it has {', '.join(sorted(base.peft_config))}")
    return base, adapter


def mean_gates(model: Any, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Module name -> the mean of its N gates over all counted tokens of the batches, for the active adapter.

    A batch holds ``input_ids`` and, optionally, ``attention_mask`` (batch, position); every token of the attention mask
    counts alike, or those of ``mask`` where a batch has one. A module without a router has the gate 1; one that has seen no
    counted token is left out.
    """
    base, adapter = tuner_of(model)
    sums: dict[str, Tensor] = {}  # (N), float64
    counts: dict[str, float] = {}
    with measuring(model):
        for batch in batches:
            inputs, counted = _inputs(model, batch)
            with base.routing(counted) as routing:
                model(**inputs, use_cache=False)
            for name, logits in routing.logits.items():
                total, count = _sum_gates(logits, routing.top_k[name], counted)
                sums[name] = sums.get(name, torch.zeros_like(total)) + total
                counts[name] = counts.get(name, 0.0) + count
    means = {name: (total / counts[name]).tolist() for name, total in sums.items() if counts[name]}
    layers = base.adapted_layers().items()
    without = {name: [1.0] for name, layer in layers if adapter in layer.malora_A and adapter not in layer.malora_router}
    if not means and not without:
        raise InputError("the batches hold no token that counts, so there are no gates to take the mean of")
    return dict(sorted((means | without).items()))


def routing_gap(model: Any, batches: Iterable[Batch], gates: Gates | None = None) -> RoutingGap:
    """How far the model with these fixed gates (None: uniform) is from the token-routed one, for the active adapter.

    Batches as for :func:`mean_gates`. Measured where a token of ``labels`` is to be predicted (-100: not), else at every next
    token that counts.
    """
    base, adapter = tuner_of(model)
    fixed = base.gates(adapter, gates)  # checked before anything is measured
    sliced = can_slice(model)
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    with measuring(model):
        for batch in batches:
            inputs, counted = _inputs(model, batch)
            inputs["labels"] = _labels(inputs["input_ids"], counted, batch.get("labels"))
            routed, targets = answer_logits(model, inputs, sliced)  # (answers, vocabulary), (answers)
            with base.fixed_gates(fixed):
                other, _ = answer_logits(model, inputs, sliced)  # (answers, vocabulary)
            for begin in range(0, len(targets), 128):  # float64 over a whole vocabulary is large
                part = slice(begin, begin + 128)
                sums += _compare(routed[part], other[part], targets[part]).cpu()
            tokens += len(targets)
    if not tokens:
        raise InputError("the batches hold no token to predict, so there is nothing to measure")
    loss_routed, loss_fixed, kl, agreement = (sums / tokens).tolist()
    return RoutingGap(loss_routed=loss_routed, loss_fixed=loss_fixed, kl=max(kl, 0.0), agreement=agreement, tokens=tokens)


# The measurements


def _inputs(model: Any, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """What the model reads, on its device, and which tokens count: (batch, position), bool."""
    ids = batch["input_ids"].to(model.device)
    attention = batch["attention_mask"].to(ids.device) if "attention_mask" in batch else torch.ones_like(ids)
    counted = attention.bool()
    if "mask" in batch:
        counted = counted & batch["mask"].to(ids.device, torch.bool)
    return {"input_ids": ids, "attention_mask": attention}, counted


def _sum_gates(logits: Tensor, top_k: int, counted: Tensor) -> tuple[Tensor, float]:
    """The gates summed over the counted tokens (N), float64, and their number; a module that sees others counts all of its own."""
    gates = gate(logits, top_k).double().flatten(0, -2)  # (tokens, N)
    if len(gates) == counted.numel():
        gates = gates[counted.flatten()]
    return gates.sum(dim=0).cpu(), float(len(gates))


def _labels(ids: Tensor, counted: Tensor, labels: Tensor | None) -> Tensor:
    """The tokens to predict, -100 elsewhere; a token is not predicted from padding. (batch, position)"""
    if labels is not None:
        return labels.to(ids.device)
    before = torch.zeros_like(counted)
    before[:, 1:] = counted[:, :-1]
    return ids.masked_fill(~(counted & before), IGNORED)


def _compare(routed: Tensor, fixed: Tensor, targets: Tensor) -> Tensor:
    """Summed over the tokens: both losses, the divergence, the agreements. (tokens, vocabulary) twice, (tokens) -> (4)"""
    p, q = routed.double().log_softmax(dim=-1), fixed.double().log_softmax(dim=-1)
    weight = p.exp()
    kl = torch.where(weight > 0, weight * (p - q), 0.0).sum()
    agree = (p.argmax(dim=-1) == q.argmax(dim=-1)).sum().double()
    return torch.stack([nll_loss(p, targets, reduction="sum"), nll_loss(q, targets, reduction="sum"), kl, agree])
