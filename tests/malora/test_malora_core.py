"""The stacked arithmetic equals the paper's formula, written out expert by expert."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from malora.balance import Routing, load_balance_loss
from malora.core import gate, start, top_k_mask, update


def naive(x: Tensor, W0: Tensor, A: Tensor, P: Tensor, B: Tensor, router: Tensor, k: int, s: float) -> Tensor:
    """Token by token, expert by expert. x (tokens, n) -> (tokens, m)"""
    outputs = []
    for token in x:
        y = W0 @ token
        logits = (router @ token).tolist()
        best = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:k]
        scores = router @ token
        gates = torch.softmax(scores, 0)[best] if k == 1 else torch.softmax(scores[best], 0)
        for weight, t in zip(gates, best, strict=True):
            y = y + s * weight * (B[t] @ (P[t] @ (A @ token)))
        outputs.append(y)
    return torch.stack(outputs) if outputs else x.new_zeros(0, W0.shape[0])


def both(seed: int, tokens: int, n: int, m: int, N: int, k: int, r: int, d: int, dtype: torch.dtype) -> float:
    """The largest difference of outputs and of all gradients."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    tensors = [random(tokens, n), random(m, n), random(d, n), random(N, r, d), random(N, m, r), random(N, n)]
    x, W0, A, P, B, router = tensors
    weight = torch.randn(tokens, m, generator=draw, dtype=torch.float64).to(dtype)
    fast = update(x @ W0.T, x, gate(x @ router.T, k), A, P, B, 0.7)
    slow = naive(x, W0, A, P, B, router, k, 0.7)
    gap = (fast - slow).abs().max().item() / max(1.0, slow.abs().max().item())
    for one, two in zip(
        torch.autograd.grad((fast * weight).sum(), tensors),
        torch.autograd.grad((slow * weight).sum(), tensors, allow_unused=True),
        strict=True,
    ):
        expected = torch.zeros_like(one) if two is None else two
        gap = max(gap, (one - expected).abs().max().item() / max(1.0, expected.abs().max().item()))
    return gap


shapes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_outputs_and_gradients_equal_the_expert_by_expert_reference_in_float64(shape, seed, share):
    tokens, n, m, N, r, more = shape
    k = 1 + int(share * (N - 1))
    assert both(seed, tokens, n, m, N, k, r, r + more, torch.float64) <= 1e-10


@pytest.mark.parametrize("k", range(1, 9))
def test_outputs_and_gradients_equal_the_reference_in_float32(k):
    assert both(k, 33, 24, 20, 8, k, 4, 6, torch.float32) <= 1e-5


def test_no_tokens_give_no_outputs():
    tensors = start(4, 3, experts=2, rank=1, shared=1, seed=0, name="x")
    x = torch.zeros(0, 4)
    y = update(torch.zeros(0, 3), x, gate(x @ tensors.router.T, 2), tensors.A, tensors.P, tensors.B, 1.0)
    assert y.shape == (0, 3)


def test_leading_shape_and_memory_layout_do_not_matter():
    t = start(6, 5, experts=3, rank=2, shared=2, seed=0, name="x", identity=False)
    x = torch.randn(4, 2, 6).transpose(0, 1)  # not contiguous
    y = update(torch.zeros(2, 4, 5), x, gate(x @ t.router.T, 2), t.A, t.P, t.B, 1.0)
    flat = x.reshape(8, 6)
    expected = update(torch.zeros(8, 5), flat, gate(flat @ t.router.T, 2), t.A, t.P, t.B, 1.0)
    torch.testing.assert_close(y.reshape(8, 5), expected)


def test_a_tie_is_won_by_the_lower_number_and_exactly_k_experts_are_open():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0]])
    assert top_k_mask(logits, 2).tolist() == [[True, True, False, False], [False, True, True, False]]
    assert gate(logits, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]]


@given(seed=st.integers(0, 10**6), N=st.integers(2, 12), k=st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_gates_are_the_softmax_over_the_top_k(seed, N, k):
    k = min(k, N)
    logits = torch.randn(5, N, generator=torch.Generator().manual_seed(seed))
    gates = gate(logits, k)
    assert ((gates > 0).sum(-1) == k).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(5))
    values, index = logits.topk(k)
    torch.testing.assert_close(gates.gather(-1, index), values.softmax(-1))


def test_with_one_expert_open_the_gate_is_the_full_probability_and_the_router_learns():
    logits = torch.randn(6, 4, requires_grad=True)
    gates = gate(logits, 1)
    torch.testing.assert_close(gates.max(-1).values, logits.softmax(-1).max(-1).values)
    gates.sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0


def test_gates_are_at_least_float32():
    assert gate(torch.randn(2, 4, dtype=torch.bfloat16), 2).dtype == torch.float32
    assert gate(torch.randn(2, 4, dtype=torch.float64), 2).dtype == torch.float64


@pytest.mark.parametrize(("rank", "shared"), [(8, 8), (8, 16), (2, 2)])
def test_every_expert_starts_with_the_variance_of_a_lora(rank, shared):
    n = 256
    t = start(n, 8, experts=8, rank=rank, shared=shared, seed=5, name="layer")
    variance = (t.P @ t.A).square().mean(dim=(1, 2)) * 3 * n
    assert ((variance - 1).abs() < 1e-3).all()
    assert (t.B == 0).all()
    assert not torch.equal(t.P[0], t.P[1])


def test_the_start_depends_on_seed_and_name_only():
    def draw(seed: int, name: str) -> Tensor:
        torch.rand(3)  # the global generator plays no part
        return start(8, 8, experts=2, rank=2, shared=2, seed=seed, name=name).A

    assert torch.equal(draw(1, "a"), draw(1, "a"))
    assert not torch.equal(draw(1, "a"), draw(2, "a"))
    assert not torch.equal(draw(1, "a"), draw(1, "b"))


def naive_balance(logits: Tensor, k: int, mask: Tensor) -> float:
    N = logits.shape[-1]
    counts, probability, tokens = [0.0] * N, [0.0] * N, 0
    for row, valid in zip(logits.tolist(), mask.tolist(), strict=True):
        if not valid:
            continue
        tokens += 1
        for t in sorted(range(N), key=lambda i: (-row[i], i))[:k]:
            counts[t] += 1
        total = sum(math.exp(v) for v in row)
        probability = [p + math.exp(v) / total for p, v in zip(probability, row, strict=True)]
    return N * sum(c / (tokens * k) * p / tokens for c, p in zip(counts, probability, strict=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), N=st.integers(1, 8), k=st.integers(1, 8))
def test_load_balance_counts_the_unmasked_tokens_only(seed, N, k):
    draw = torch.Generator().manual_seed(seed)
    k = min(k, N)
    logits = torch.randn(2, 9, N, generator=draw)
    mask = torch.rand(9, generator=draw) < 0.6
    mask[0] = True
    expected = [naive_balance(module, k, mask) for module in logits]
    torch.testing.assert_close(load_balance_loss(logits, k, mask), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    logits[:, ~mask] = 50.0  # whatever padding holds
    torch.testing.assert_close(load_balance_loss(logits, k, mask), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_even_use_costs_c_and_one_sided_use_costs_up_to_n_times_c():
    even = Routing()
    even.add("a", torch.eye(4).repeat(3, 1)[None] * 1e-3, 1, 0.5)
    assert even.auxiliary_loss().item() == pytest.approx(0.5, rel=1e-3)
    one = Routing()
    one.add("a", torch.tensor([[[40.0, 0, 0, 0]]]).repeat(1, 12, 1), 1, 0.5)
    assert one.auxiliary_loss().item() == pytest.approx(2.0, rel=1e-3)
