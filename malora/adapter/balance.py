"""What the routers did during a forward pass: the load-balance loss and who used which expert."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from malora.adapter.core import gate, top_k_mask


class Stacked(NamedTuple):
    """The logits of the modules that are alike, over the same tokens."""

    names: list[str]
    logits: Tensor  # (modules, tokens, N)
    top_k: int
    coefficient: float
    mask: Tensor | None  # (tokens), true where a token counts; None: all do


@dataclass
class Routing:
    """Collects every router's logits while a ``MaloraModel.routing(mask)`` block is open.

    ``mask`` (batch, position) is true where a token counts; None counts all. A module whose tokens cannot be matched
    with the mask (an expert of a sparse base model sees only some of them) counts all of its own. With gradient
    checkpointing leave the block only after ``backward``; the recomputed logits of a module are then ignored. It has to be
    the kind with ``use_reentrant=False``: the other one leaves these logits without a gradient.
    ``routers`` is the number of active routers of the model: none has a variant without routing, and its loss is 0.
    """

    mask: Tensor | None = None
    routers: int = 1
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
        if not self.routers:
            return torch.zeros(())
        if not self.logits:
            raise RuntimeError("no router ran inside this routing block: is an adapter active, and are its gates not fixed?")
        total: Tensor | None = None
        for group in self.stacked():
            loss = group.coefficient * load_balance_loss(group.logits, group.top_k, group.mask).sum()
            total = loss if total is None else total + loss.to(total.device)
        assert total is not None  # there are logits
        return total / len(self.logits)

    def stacked(self) -> Iterator[Stacked]:
        """The modules in as few stacks as their shapes allow."""
        groups: dict[tuple[torch.Size, int, float, torch.device], list[str]] = {}
        for name, logits in self.logits.items():
            key = (logits.shape, self.top_k[name], self.coefficient[name], logits.device)
            groups.setdefault(key, []).append(name)
        for (_, top_k, coefficient, device), names in groups.items():
            logits = torch.stack([self.logits[name] for name in names]).flatten(1, -2)  # (modules, tokens, N)
            fits = self.mask is not None and self.mask.numel() == logits.shape[1]
            mask = self.mask.reshape(-1).to(device, torch.bool) if self.mask is not None and fits else None  # (tokens)
            yield Stacked(names, logits, top_k, coefficient, mask)


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
    weight = mask.to(logits)  # (tokens)
    tokens = weight.sum().clamp(min=1)
    f = weight @ chosen / (tokens * top_k)  # (modules, N)
    p = weight @ probabilities / tokens  # (modules, N)
    return logits.shape[-1] * (f * p).sum(dim=-1)


class RoutingStatistics:
    """Who used which expert, summed over any number of forward passes, by module and group of rows (language and task).

    ::

        statistics = RoutingStatistics(["en_math", "zh_chat"])
        with peft_model.base_model.routing(attention_mask) as routing:
            peft_model(**batch)
        statistics.add(routing, groups=[0, 0, 1])  # the group of each row of the batch
        statistics.table()
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.groups = list(groups)
        self._tokens: Tensor | float = 0.0  # (groups), and below: on the model's device, so that no step waits for it
        self._sums: dict[str, Tensor] = {}  # module -> (groups, 2 N + 1): gates, slots, entropy in units of log N

    @torch.no_grad()
    def add(self, routing: Routing, groups: Sequence[int] | Tensor) -> None:
        """Adds one forward pass. ``groups`` (batch) holds each row's index into the names; masked tokens do not count.

        A module whose tokens cannot be matched with rows (inside an expert of a sparse base model) is left out.
        """
        rows = torch.as_tensor(groups)
        counted = False
        for stack in routing.stacked():
            tokens = stack.logits.shape[1]
            if tokens % len(rows) or (routing.mask is not None and stack.mask is None):
                continue
            members = one_hot(rows.to(stack.logits.device), len(self.groups))  # (batch, groups)
            members = members.repeat_interleave(tokens // len(rows), dim=0).to(torch.float32)  # (tokens, groups)
            if stack.mask is not None:
                members = members * stack.mask.unsqueeze(1)
            sums = members.t() @ _measures(stack)  # (modules, groups, 2 N + 1)
            for name, part in zip(stack.names, sums, strict=True):
                self._sums[name] = self._sums[name] + part if name in self._sums else part
            if not counted:
                self._tokens = self._tokens + members.sum(dim=0)
                counted = True

    def _on_cpu(self) -> tuple[dict[str, Tensor], Tensor]:
        """Sums by module, sorted, and tokens (groups), in float64."""
        tokens = torch.as_tensor(self._tokens).double().cpu().expand(len(self.groups))
        return {name: self._sums[name].double().cpu() for name in sorted(self._sums)}, tokens

    def table(self) -> dict[str, Any]:
        """What is written to training.json; groups of which no token was seen are left out.

        ``share[module][group][expert]`` is the expert's mean gate, ``load[module][group][expert]`` its share of the (token,
        slot) pairs, ``entropy[module][group]`` the mean entropy of the router's softmax divided by log N: 1 for a router
        that does not tell experts apart, 0 for one that is always certain.
        """
        modules, tokens = self._on_cpu()
        seen = [index for index, count in enumerate(tokens.tolist()) if count]
        share, load, entropy = [], [], []
        for module in modules.values():
            sums = module[seen] / tokens[seen].unsqueeze(1)  # (groups, 2 N + 1)
            experts = sums.shape[1] // 2
            slots = sums[:, experts : 2 * experts]
            share.append(_rounded(sums[:, :experts]))
            load.append(_rounded(slots / slots.sum(dim=1, keepdim=True)))
            entropy.append(_rounded(sums[:, -1]))
        return {
            "modules": list(modules),
            "groups": [self.groups[index] for index in seen],
            "tokens": [int(tokens[index]) for index in seen],
            "share": share,
            "load": load,
            "entropy": entropy,
        }

    def summary(self) -> dict[str, float]:
        """Over all tokens, the mean of the modules: ``imbalance`` N max_t load_t (1 even, N one expert takes all) and entropy."""
        modules, tokens = self._on_cpu()
        if not modules:
            return {}
        imbalance = entropy = 0.0
        for sums in modules.values():
            total = sums.sum(dim=0)  # (2 N + 1)
            experts = total.shape[0] // 2
            slots = total[experts : 2 * experts]
            imbalance += float(experts * slots.max() / slots.sum())
            entropy += float(total[-1] / tokens.sum())
        return {"imbalance": imbalance / len(modules), "entropy": entropy / len(modules)}


def _measures(stack: Stacked) -> Tensor:
    """Gates, slots and entropy of each token. (modules, tokens, 2 N + 1)"""
    logits = stack.logits.float()
    gates = gate(logits, stack.top_k)
    logs = logits.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1, keepdim=True) / math.log(max(2, logits.shape[-1]))
    return torch.cat([gates, (gates > 0).to(gates), entropy], dim=-1)


def _rounded(values: Tensor) -> Any:
    return values.round(decimals=6).tolist()
