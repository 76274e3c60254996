"""The arithmetic of the adapter: the gate, the stacked mixture with its derivative, the start. Functions of tensors, no PEFT.

Letters: n inputs and m outputs of the linear layer, N experts, k of them per token, d rows of the down-projection A, r the
rank of an expert's up-projection, s the scale, T tokens. ``...`` stands for any leading shape (batch, position).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


@dataclass(frozen=True)
class Experts:
    """The tensors of one adapted linear layer. Which of them there are makes the variant.

    ``z_t``, what expert t projects up, is ``P_t (A x)`` (malora), ``A_t x`` (moe_lora: A holds N blocks of r rows) or
    ``A x`` (hydra and lora: A has r rows).
    """

    A: Tensor  # (d, n)
    B: Tensor  # (N, m, r)
    P: Tensor | None = None  # (N, r, d)
    router: Tensor | None = None  # (N, n), or (N, d) where it reads A x; None: every gate is 1
    shared_router: bool = False

    def to(self, dtype: torch.dtype) -> Experts:
        """The same in another type."""
        P, router = (None if tensor is None else tensor.to(dtype) for tensor in (self.P, self.router))
        return Experts(self.A.to(dtype), self.B.to(dtype), P, router, self.shared_router)


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """True at the k largest logits of every token, exactly k of them; of equal logits the lower number wins.

    (..., N) -> bool (..., N)
    """
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, _top_k(logits.detach(), k)[1], True)


def gate(logits: Tensor, k: int) -> Tensor:
    """Weight of each expert for each token: the softmax over the k largest logits, zero elsewhere.

    With k = 1 that softmax would be the constant 1 and the router would learn nothing; there it is the probability of
    the full softmax instead. At least float32, also under autocast. (..., N) -> (..., N)
    """
    return _gate(logits, k)[0]


def _gate(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The gates, and the softmax whose values at the open experts they are. Both (..., N)"""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    values, chosen = _top_k(logits, k)  # (..., k)
    if k == 1:
        probabilities = (logits - values).exp()
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, chosen, probabilities.gather(-1, chosen)), probabilities
    weights = (values - values[..., :1]).exp()  # torch's softmax is five times slower over so few
    weights = weights / weights.sum(dim=-1, keepdim=True)
    gates = torch.zeros_like(logits).scatter(-1, chosen, weights)
    return gates, gates


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits, in falling order, and their experts; of equal ones the lower number first. Both (..., k)

    ``torch.topk`` does not define which of equal values it takes; ``max`` takes the first. A few rounds beat a sort.
    """
    if k > 4:
        values, experts = logits.sort(dim=-1, descending=True, stable=True)
        return values[..., :k], experts[..., :k]
    rounds, rest = [], logits
    for number in range(k):
        best = rest.max(dim=-1, keepdim=True)
        rounds.append(best)
        if number + 1 < k:
            rest = rest.scatter(-1, best.indices, -math.inf)
    return torch.cat([best.values for best in rounds], dim=-1), torch.cat([best.indices for best in rounds], dim=-1)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Of some devices (meta) torch knows no autocast, and raises where it is named."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def mixture(
    x: Tensor, base: Tensor | torch.nn.Linear, experts: Experts, k: int, s: float, gates: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """``y = base + s * sum_t gates_t * B_t z_t`` and the router's logits (None without a router).

    All experts are stacked into one product, ``[gates_1 z_1 ... gates_N z_N] [B_1 ... B_N]^T``, added to the base by one
    ``addmm``: no expert is gathered or scattered, so nothing is atomic and the result is the same every time; closed
    gates multiply by zero. Worth it while N r stays below ~512.

    ``base`` is the output of the adapted layer (..., m), or the layer itself when it is a plain frozen one: then its
    product with x is computed here too, and both derivatives by x are summed without another pass over them.
    ``gates`` (N), when given, replace the router's for every token. x (..., n) -> y (..., m), logits (..., N)
    """
    inputs, outputs = x.shape[-1], experts.B.shape[1]
    weight = bias = None
    if isinstance(base, torch.nn.Linear):
        weight, bias = base.weight, base.bias
        flat = None
    else:
        flat = base.reshape(-1, outputs)  # (T, m)
    router = experts.router if gates is None else None
    e = experts
    y, logits = _Mixture.apply(x.reshape(-1, inputs), flat, weight, bias, e.A, e.P, e.B, router, gates, k, s, e.shared_router)  # type: ignore[no-untyped-call]
    leading = x.shape[:-1]
    return y.view(*leading, outputs), None if logits is None else logits.view(*leading, experts.B.shape[0])


class _Mixture(torch.autograd.Function):
    """Written by hand for three reasons: it keeps d + 2 N numbers a token for the backward pass (d + 3 N with k = 1), not
    d + 3 N r; the router and A share one product with x, and one with its gradient; nothing as large as x or y is made only
    to be added.

    With h_t = s g_t z_t, what B_t projects up, the derivative by a logit needs no z: of g_t * dL/dg_t = <dh_t, h_t>,
    the softmax p (over the k open experts, or over all with k = 1) makes dL/dlogit_t = <dh_t, h_t> - p_t sum_e <dh_e, h_e>.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (T, n)
        base: Tensor | None,  # (T, m), or None: computed here from weight and bias
        weight: Tensor | None,  # (m, n)
        bias: Tensor | None,  # (m)
        A: Tensor,
        P: Tensor | None,
        B: Tensor,
        router: Tensor | None,
        fixed: Tensor | None,  # (N)
        k: int,
        s: float,
        shared_router: bool,
    ) -> tuple[Tensor, Tensor | None]:
        experts, _, rank = B.shape
        u, logits = _project(x, A, router, shared_router)  # (T, d), (T, N)
        gates, probabilities = (fixed, None) if logits is None else _gate(logits, k)  # (N), (T, N) or None
        scale = s if gates is None else (gates * s).to(u.dtype).unsqueeze(-1)  # a number, (N, 1) or (T, N, 1)
        h = _scaled(u, P, scale, experts, rank)  # (T, N*r)
        stacked = _stack(B)  # (N*r, m)
        if base is None:
            assert weight is not None
            y = linear(x, weight, bias).addmm_(h, stacked)  # (T, m)
        elif base.dtype == h.dtype:
            y = torch.addmm(base, h, stacked)
        else:
            y = base + (h @ stacked).to(base.dtype)
        # x only where A or a router on x learns
        keep = x if ctx.needs_input_grad[4] or (ctx.needs_input_grad[7] and not shared_router) else None
        ctx.save_for_backward(keep, u, gates, probabilities, weight, A, P, B, router)
        ctx.s, ctx.shared_router = s, shared_router
        ctx.set_materialize_grads(False)
        return y, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlogits: Tensor | None) -> tuple[Tensor | None, ...]:
        given = dlogits if dy is None else dy
        if given is None:
            return (None,) * 12
        with without_autocast(given.device.type):  # the forward pass has settled the types
            return _derivatives(ctx, dy, dlogits)


def _derivatives(ctx: Any, dy: Tensor | None, dlogits: Tensor | None) -> tuple[Tensor | None, ...]:
    """By the arguments of ``_Mixture.forward``, in their order."""
    x, u, gates, probabilities, weight, A, P, B, router = ctx.saved_tensors
    experts, outputs, rank = B.shape
    need_x, need_base, _, _, need_A, need_P, need_B, need_router = ctx.needs_input_grad[:8]
    dx = dA = dP = dB = drouter = None
    if dy is None:  # only the logits were used
        dy = B.new_zeros(u.shape[0], outputs)
    grad = dy.to(B.dtype)  # (T, m)
    scale = ctx.s if gates is None else (gates * ctx.s).to(u.dtype).unsqueeze(-1)
    h = _scaled(u, P, scale, experts, rank)  # (T, N*r), as in the forward pass
    dh = (grad @ _stack(B).t()).view(-1, experts, rank)  # (T, N, r)
    if need_B:
        dB = (h.t() @ grad).view(experts, rank, outputs).transpose(1, 2)
    if probabilities is not None:
        inner = (dh * h.view_as(dh)).sum(dim=-1).to(probabilities.dtype)  # (T, N)
        routed = (inner - probabilities * inner.sum(dim=-1, keepdim=True)).to(u.dtype)
        dlogits = routed if dlogits is None else routed + dlogits
    dz = dh.mul_(scale).flatten(1)  # (T, N*r)
    if P is not None:
        du = dz @ P.flatten(0, 1)  # (T, d)
        dP = (dz.t() @ u).view_as(P) if need_P else None
    elif u.shape[1] == dz.shape[1]:  # an A for each expert
        du = dz
    else:  # one A for all
        du = dz.view(-1, experts, rank).sum(dim=1)
    if router is not None and ctx.shared_router:
        drouter = dlogits.t() @ u if need_router else None  # type: ignore[union-attr]
        du = du.addmm(dlogits, router)
    elif router is not None:  # what A and the router gave x, they give together
        assert dlogits is not None  # a router has logits
        du, A = torch.cat([du, dlogits], dim=1), torch.cat([A, router])  # (T, d + N), (d + N, n)
    if need_x:
        dx = du @ A if weight is None else (dy @ weight).addmm_(du, A)  # (T, n)
    if x is not None:
        down = du.t() @ x  # (d, n) or (d + N, n)
        dA = down[: u.shape[1]] if need_A else None
        drouter = drouter if down.shape[0] == u.shape[1] else down[u.shape[1] :]
    return dx, dy if need_base else None, None, None, dA, dP, dB, drouter, None, None, None, None


def _project(x: Tensor, A: Tensor, router: Tensor | None, shared_router: bool) -> tuple[Tensor, Tensor | None]:
    """``A x`` and the router's logits, from one product where both read x."""
    if router is None:
        return linear(x, A), None
    if shared_router:
        u = linear(x, A)
        return u, linear(u, router)
    both = linear(x, torch.cat([A, router]))  # (T, d + N)
    return both[:, : A.shape[0]], both[:, A.shape[0] :].contiguous()


def _scaled(u: Tensor, P: Tensor | None, scale: Tensor | float, experts: int, rank: int) -> Tensor:
    """h: what each expert projects up, times its gate and s. (T, N*r)"""
    if P is None:  # u is (T, N*r), or (T, r) that all experts share
        return (u.view(u.shape[0], u.shape[1] // rank, rank) * scale).reshape(-1, experts * rank)
    return linear(u, P.flatten(0, 1)).view(-1, experts, rank).mul_(scale).view(-1, experts * rank)


def _stack(B: Tensor) -> Tensor:
    """(N, m, r) -> (N*r, m)"""
    return B.transpose(1, 2).reshape(-1, B.shape[1])


def start(shapes: Mapping[str, tuple[int, ...]], *, seed: int, name: str, identity: bool = True) -> dict[str, Tensor]:
    """The tensors to begin with, on the CPU in float32; the same for the same seed and name, whatever was drawn before.

    ``B = 0`` makes the adapter the identity. Every expert's way down (``P_t A``, or its own A) gets the variance of a
    LoRA's A, ``1/(3n)``, as kaiming-uniform with a = sqrt 5 has it: P_t is drawn from a normal distribution and rescaled so that
    the variance of each product is exact (single draws scatter by 12-18 %).
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    down, inputs = shapes["A"]
    tensors = {}
    if "P" in shapes:
        A = _kaiming((down, inputs), draw)
        P = _empty(shapes["P"]).normal_(generator=draw)
        spread = (P @ A).square().mean(dim=(1, 2), keepdim=True)  # (N, 1, 1)
        tensors = {"A": A, "P": P * (spread * 3 * inputs).rsqrt()}
    else:
        tensors = {"A": _kaiming((down, inputs), draw)}
    if "router" in shapes:
        tensors["router"] = _kaiming(shapes["router"], draw)
    B = _empty(shapes["B"])
    tensors["B"] = B.zero_() if identity else B.normal_(generator=draw) / math.sqrt(shapes["B"][-1])
    return tensors


def _kaiming(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Uniform with variance 1/(3 n), n the last dimension."""
    return _empty(shape).uniform_(-1, 1, generator=draw) / math.sqrt(shape[-1])


def _empty(shape: tuple[int, ...]) -> Tensor:
    """Whatever torch's defaults are, so that a seed gives the same numbers."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
