"""What the routers did during a forward pass: the load-balance loss and who used which expert."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from malora.core import gate, top_k_mask


@dataclass
class Routing:
    """Collects every router's logits while a ``MaloraModel.routing(mask)`` block is open.

    ``mask`` (batch, position) is true where a token counts; None counts all. A module whose tokens cannot be matched
    with the mask (an expert of a sparse base model sees only some of them) counts all of its own. With gradient
    checkpointing leave the block only after ``backward``; the recomputed logits of a module are then ignored.
    """

    mask: Tensor | None = None
    logits: dict[str, Tensor] = field(default_factory=dict)  # module name -> (batch, position, N)
    top_k: dict[str, int] = field(default_factory=dict)
    coefficient: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, logits: Tensor, top_k: int, coefficient: float) -> None:
        """Called by a layer; the first forward pass of a block is the one that counts."""
        if name not in self.logits:
            self.logits[name] = logits
            self.top_k[name] = top_k
            self.coefficient[name] = coefficient

    def auxiliary_loss(self) -> Tensor:
        """The mean over the modules of ``c * load_balance_loss``; equals c when every expert is used alike. ()"""
        groups: dict[tuple[torch.Size, int, float, torch.device], list[Tensor]] = {}
        for name, logits in self.logits.items():
            key = (logits.shape, self.top_k[name], self.coefficient[name], logits.device)
            groups.setdefault(key, []).append(logits)
        if not groups:
            raise RuntimeError("no router ran inside this routing block: is an adapter active?")
        total: Tensor | None = None
        for (_, top_k, coefficient, _device), members in groups.items():
            stacked = torch.stack(members).flatten(1, -2)  # (modules, tokens, N)
            loss = coefficient * load_balance_loss(stacked, top_k, self._flat_mask(stacked)).sum()
            total = loss if total is None else total + loss.to(total.device)
        assert total is not None  # groups is not empty
        return total / len(self.logits)

    def _flat_mask(self, stacked: Tensor) -> Tensor | None:
        if self.mask is None or self.mask.numel() != stacked.shape[1]:
            return None
        return self.mask.reshape(-1).to(stacked.device, torch.bool)

    @torch.no_grad()
    def gate_sums(self) -> dict[str, Tensor]:
        """Module name -> (batch, N): the gates of each row summed over its counted tokens."""
        sums = {}
        for name, logits in self.logits.items():
            gates = gate(logits, self.top_k[name])  # (batch, position, N)
            if self.mask is not None:
                gates = gates * self.mask.to(gates).unsqueeze(-1)
            sums[name] = gates.sum(dim=-2)
        return sums


def load_balance_loss(logits: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """``N * sum_t f_t * p_t`` of each module, from 1 (even) to N (one expert takes all).

    ``f_t`` is the share of (token, slot) pairs sent to expert t (no gradient), ``p_t`` its mean softmax probability;
    both over the tokens of the mask only. logits (modules, tokens, N), mask (tokens) -> (modules)
    """
    logits = logits.float()
    chosen = top_k_mask(logits, top_k).to(logits)  # (modules, tokens, N)
    probabilities = logits.softmax(dim=-1)  # (modules, tokens, N)
    if mask is None:
        mask = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    weight = mask.to(logits).unsqueeze(-1)  # (tokens, 1)
    tokens = weight.sum().clamp(min=1)
    f = (chosen * weight).sum(dim=1) / (tokens * top_k)  # (modules, N)
    p = (probabilities * weight).sum(dim=1) / tokens  # (modules, N)
    return logits.shape[-1] * (f * p).sum(dim=-1)
