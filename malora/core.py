"""MALoRA's arithmetic: the gate, the stacked update, the start. Pure functions of tensors, without PEFT.

Letters: n inputs and m outputs of the linear layer, N experts, k of them per token, d the shared rank, r the rank of an
expert's up-projection, s the scale. ``...`` stands for any leading shape (batch, position).
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, softmax


class Start(NamedTuple):
    """The tensors of an adapted linear layer before training, on the CPU in float32."""

    A: Tensor  # (d, n)
    P: Tensor  # (N, r, d)
    B: Tensor  # (N, m, r)
    router: Tensor  # (N, n)


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """True at the k largest logits of every token, exactly k of them; of equal logits the lower number wins.

    (..., N) -> bool (..., N)
    """
    best = logits.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]  # (..., k)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, best, True)  # (..., N)


def gate(logits: Tensor, k: int) -> Tensor:
    """Weight of each expert for each token: the softmax over the k largest logits, zero elsewhere.

    With k = 1 that softmax would be the constant 1 and the router would learn nothing; there it is the probability of
    the full softmax instead. At least float32, also under autocast. (..., N) -> (..., N)
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if k == logits.shape[-1] and k > 1:
        return softmax(logits, dim=-1)
    chosen = top_k_mask(logits, k)
    if k == 1:
        return softmax(logits, dim=-1) * chosen
    return softmax(logits.masked_fill(~chosen, -math.inf), dim=-1)


def update(base: Tensor, x: Tensor, gates: Tensor, A: Tensor, P: Tensor, B: Tensor, s: float) -> Tensor:
    """``base + s * sum_t gates_t * B_t P_t (A x)``, all experts stacked into one product: ``base + h @ B_all``.

    No expert is gathered or scattered, so nothing is atomic and the result is the same every time; closed gates
    multiply by zero. Worth it while N*r stays below ~512.
    base (..., m), x (..., n), gates (..., N), A (d, n), P (N, r, d), B (N, m, r) -> (..., m)
    """
    experts, outputs, rank = B.shape
    shared = linear(x, A)  # (..., d)
    down = linear(shared, P.flatten(0, 1))  # (..., N*r)
    scaled = (s * gates).to(down.dtype)  # (..., N)
    h = (down.view(*down.shape[:-1], experts, rank) * scaled.unsqueeze(-1)).flatten(-2)  # (..., N*r)
    stacked = B.permute(0, 2, 1).reshape(experts * rank, outputs)  # (N*r, m)
    if base.dtype != h.dtype:
        return base + (h @ stacked).to(base.dtype)  # (..., m)
    flat = torch.addmm(base.reshape(-1, outputs), h.reshape(-1, experts * rank), stacked)  # (tokens, m)
    return flat.view(base.shape)  # (..., m)


def start(inputs: int, outputs: int, *, experts: int, rank: int, shared: int, seed: int, name: str, identity: bool = True) -> Start:
    """The tensors to begin with; the same for the same seed and name, whatever was drawn before.

    ``B = 0`` makes the adapter the identity. ``P_t A`` gets the variance of a LoRA's A, ``1/(3n)``: A is
    kaiming-uniform (a = sqrt 5: variance 1/(3n)), P_t normal with variance 1/d, a draw of its own for every expert, then
    rescaled so that the variance of each product is exact (single draws scatter by 12-18 %).
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    A = torch.empty(shared, inputs).uniform_(-1, 1, generator=draw) / math.sqrt(inputs)
    P = torch.empty(experts, rank, shared).normal_(generator=draw) / math.sqrt(shared)
    spread = (P @ A).square().mean(dim=(1, 2), keepdim=True)  # (N, 1, 1)
    P = P * (spread * 3 * inputs).rsqrt()
    router = torch.empty(experts, inputs).uniform_(-1, 1, generator=draw) / math.sqrt(inputs)
    B = torch.zeros(experts, outputs, rank)
    if not identity:
        B = B.normal_(generator=draw) / math.sqrt(rank)
    return Start(A, P, B, router)
