"""The stacked arithmetic equals the paper's formula, written out expert by expert."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from malora.adapter.balance import Routing, RoutingStatistics, load_balance_loss
from malora.adapter.config import MaloraConfig
from malora.adapter.core import Experts, gate, mixture, start, top_k_mask


class Case(NamedTuple):
    """One adapted layer; ``variant`` decides which tensors there are."""

    variant: str
    tokens: int
    n: int
    m: int
    N: int
    k: int
    r: int
    d: int
    shared_router: bool = False

    def tensors(self, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        config = MaloraConfig(
            r=self.r, num_experts=self.N, top_k=self.k, variant=self.variant,
            **({"shared_rank": self.d, "shared_router": self.shared_router} if self.variant == "malora" else {}),
        )  # fmt: skip
        shapes = {**config.shapes(self.n, self.m), "x": (self.tokens, self.n), "W0": (self.m, self.n), "bias": (self.m,)}
        return {
            key: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for key, shape in shapes.items()
        }


def naive(case: Case, t: dict[str, Tensor], s: float, logits: Tensor | None = None) -> Tensor:
    """Token by token, expert by expert, by autograd. (tokens, m)"""
    outputs = []
    for number, token in enumerate(t["x"]):
        y = t["W0"] @ token + t["bias"]
        if "router" not in t:
            outputs.append(y + s * (t["B"][0] @ (t["A"] @ token)))
            continue
        scores = t["router"] @ (t["A"] @ token if case.shared_router else token) if logits is None else logits[number]
        values = scores.tolist()
        best = sorted(range(case.N), key=lambda e: (-values[e], e))[: case.k]
        gates = torch.softmax(scores, 0)[best] if case.k == 1 else torch.softmax(scores[best], 0)
        for weight, e in zip(gates, best, strict=True):
            if case.variant == "malora":
                z = t["P"][e] @ (t["A"] @ token)
            elif case.variant == "moe_lora":
                z = t["A"][e * case.r : (e + 1) * case.r] @ token
            else:
                z = t["A"] @ token
            y = y + s * weight * (t["B"][e] @ z)
        outputs.append(y)
    return torch.stack(outputs) if outputs else t["x"] @ t["W0"].T


def fast(case: Case, t: dict[str, Tensor], s: float, fused: bool) -> tuple[Tensor, Tensor | None]:
    experts = Experts(t["A"], t["B"], t.get("P"), t.get("router"), case.shared_router)
    base: Tensor | nn.Linear
    if not fused:
        base = nn.functional.linear(t["x"], t["W0"], t["bias"])
    else:
        base = nn.Linear(case.n, case.m, dtype=t["x"].dtype)
        base.weight.data, base.bias.data = t["W0"].detach(), t["bias"].detach()
        base.requires_grad_(False)
    return mixture(t["x"], base, experts, case.k, s)


def gap(case: Case, seed: int, dtype: torch.dtype, fused: bool) -> float:
    """The largest difference of the output and of all gradients, relative to the largest value of each."""
    t = case.tensors(seed, dtype)
    weight = torch.randn(case.tokens, case.m, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype)
    one, two = fast(case, t, 0.7, fused)[0], naive(case, t, 0.7)
    largest = _apart(one, two)
    wanted = {key: value for key, value in t.items() if not fused or key not in ("W0", "bias")}
    grads = [torch.autograd.grad((y * weight).sum(), list(wanted.values()), allow_unused=True) for y in (one, two)]
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None or case.tokens == 0
        if ours is not None:
            largest = max(largest, _apart(ours, torch.zeros_like(ours) if theirs is None else theirs))
    return largest


def _apart(one: Tensor, two: Tensor) -> float:
    assert one.shape == two.shape
    return 0.0 if not one.numel() else (one - two).abs().max().item() / max(1.0, two.abs().max().item())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    variant = draw(st.sampled_from(["malora", "malora", "moe_lora", "hydra", "lora"]))
    N = 1 if variant == "lora" else draw(st.integers(1, 6))
    r = draw(st.integers(1, 4))
    return Case(
        variant=variant,
        tokens=draw(st.integers(0, 7)),
        n=draw(st.integers(1, 9)),
        m=draw(st.integers(1, 9)),
        N=N,
        k=draw(st.integers(1, N)),
        r=r,
        d=r + draw(st.integers(0, 3)),
        shared_router=variant == "malora" and draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(case=cases(), seed=st.integers(0, 10**6), fused=st.booleans())
def test_outputs_and_gradients_equal_the_expert_by_expert_reference_in_float64(case, seed, fused):
    assert gap(case, seed, torch.float64, fused) <= 1e-10


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("k", range(1, 9))
def test_outputs_and_gradients_equal_the_reference_in_float32(k, fused):
    for variant in ("malora", "moe_lora", "hydra"):
        assert gap(Case(variant, 33, 24, 20, 8, k, 4, 6), k, torch.float32, fused) <= 1e-5


def test_bfloat16_equals_the_reference_within_its_rounding_for_the_same_logits():
    case = Case("malora", 40, 32, 24, 8, 2, 4, 8)
    t = case.tensors(1, torch.bfloat16)
    rounded, logits = fast(case, t, 0.7, fused=False)
    exact = naive(case, {key: value.double() for key, value in t.items()}, 0.7, logits.double())
    error = (rounded.double() - exact).abs().max() / exact.abs().max()
    assert rounded.dtype == torch.bfloat16
    assert error <= 4 * 2**-8  # four roundings of eight bits lie between x and y


@pytest.mark.parametrize("shared_router", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_handwritten_derivative_passes_gradcheck_logits_included(k, shared_router):
    case = Case("malora", 5, 4, 3, 4, k, 2, 3, shared_router)
    t = case.tensors(4, torch.float64)

    def layer(*tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        return fast(case, dict(zip(t, tensors, strict=True)), 0.7, fused=False)

    assert torch.autograd.gradcheck(layer, tuple(t.values()), eps=1e-7, atol=1e-6)


def test_a_tie_in_the_router_gives_the_gradients_of_the_reference():
    for k in (1, 2, 3):
        case = Case("malora", 6, 5, 4, 4, k, 2, 2)
        t = case.tensors(0, torch.float64)
        t["router"] = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)  # all logits equal: the lowest numbers win
        grads = [
            torch.autograd.grad(y.square().sum(), list(t.values())) for y in (fast(case, t, 0.7, False)[0], naive(case, t, 0.7))
        ]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_frozen_tensors_get_no_gradient_and_a_frozen_way_down_does_not_keep_x():
    case = Case("malora", 6, 5, 4, 4, 2, 2, 3, shared_router=True)
    t = case.tensors(0, torch.float32)
    kept: list[Tensor] = []
    t["A"].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor):
        y, _ = fast(case, t, 0.7, fused=True)
    assert not any(tensor.data_ptr() == t["x"].data_ptr() for tensor in kept)
    y.sum().backward()
    assert t["A"].grad is None
    assert all(t[key].grad is not None for key in ("x", "P", "B", "router"))


def test_no_more_is_kept_for_the_backward_pass_than_the_docstring_says():
    case = Case("malora", 64, 32, 24, 8, 2, 4, 6)
    t = case.tensors(0, torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not any(tensor.data_ptr() == known.data_ptr() for known in t.values()):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast(case, t, 0.7, fused=True)
    assert sum(kept.values()) <= case.tokens * (case.d + 2 * case.N) + case.n * case.m  # and the base's weight


def test_leading_shape_and_memory_layout_do_not_matter():
    case = Case("malora", 8, 6, 5, 3, 2, 2, 2)
    t = case.tensors(0, torch.float32)
    experts = Experts(t["A"], t["B"], t["P"], t["router"])
    x = torch.randn(4, 2, 6).transpose(0, 1)  # not contiguous
    base = torch.randn(4, 2, 5).transpose(0, 1)
    y, logits = mixture(x, base, experts, 2, 1.0)
    expected, flat_logits = mixture(x.reshape(8, 6), base.reshape(8, 5), experts, 2, 1.0)
    torch.testing.assert_close(y.reshape(8, 5), expected)
    assert logits.shape == (2, 4, 3)
    torch.testing.assert_close(logits.reshape(8, 3), flat_logits)


def test_the_same_input_gives_the_same_bits():
    case = Case("malora", 300, 48, 40, 8, 2, 4, 8)
    t = case.tensors(0, torch.float32)
    runs = [
        torch.autograd.grad(fast(case, t, 0.7, True)[0].square().sum(), [t[key] for key in ("x", "A", "P", "B", "router")])
        for _ in range(3)
    ]
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("variant", ["malora", "moe_lora", "hydra"])
def test_fixed_gates_are_the_sum_that_they_say(variant):
    case = Case(variant, 7, 6, 5, 3, 2, 2, 3 if variant == "malora" else 2)
    t = {key: value.detach() for key, value in case.tensors(0, torch.float64).items()}
    gates = torch.tensor([0.2, -1.0, 0.5], dtype=torch.float64)
    y, logits = mixture(
        t["x"], torch.zeros(7, 5, dtype=torch.float64), Experts(t["A"], t["B"], t.get("P"), t["router"]), 2, 0.7, gates
    )
    down = {"malora": lambda e: t["P"][e] @ t["A"], "moe_lora": lambda e: t["A"][2 * e : 2 * e + 2], "hydra": lambda _: t["A"]}[
        variant
    ]
    whole = sum(gates[e] * t["B"][e] @ down(e) for e in range(3))
    assert logits is None
    torch.testing.assert_close(y, 0.7 * t["x"] @ whole.T, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize(("experts", "rank", "shared"), [(8, 8, 8), (8, 8, 16), (4, 2, 2), (1, 2, 5)])
def test_every_expert_starts_with_the_variance_of_a_lora(experts, rank, shared):
    n = 256
    shapes = MaloraConfig(r=rank, shared_rank=shared, num_experts=experts).shapes(n, 8)
    t = start(shapes, seed=5, name="layer")
    assert {key: tuple(value.shape) for key, value in t.items()} == shapes
    variance = (t["P"] @ t["A"]).square().mean(dim=(1, 2)) * 3 * n
    assert ((variance - 1).abs() < 1e-3).all()
    assert (t["B"] == 0).all()
    assert experts == 1 or not torch.equal(t["P"][0], t["P"][1])


def test_the_start_is_float32_on_the_cpu_whatever_torch_defaults_to():
    shapes = {"A": (3, 8), "P": (2, 3, 3), "B": (2, 5, 3), "router": (2, 8)}
    expected = start(shapes, seed=1, name="a", identity=False)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = start(shapes, seed=1, name="a", identity=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_start_depends_on_seed_and_name_only():
    shapes = MaloraConfig(r=2, num_experts=2).shapes(8, 8)

    def draw(seed: int, name: str) -> Tensor:
        torch.rand(3)  # the global generator plays no part
        return start(shapes, seed=seed, name=name)["A"]

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


def test_statistics_equal_a_count_by_hand_over_several_passes():
    draw = torch.Generator().manual_seed(0)
    statistics = RoutingStatistics(["a", "b", "unseen"])
    gates: dict[int, list[list[float]]] = {0: [], 1: []}
    entropy: dict[int, list[float]] = {0: [], 1: []}
    for rows in ([0, 1], [1, 1, 0]):
        logits = torch.randn(len(rows), 5, 4, generator=draw)
        mask = torch.rand(len(rows), 5, generator=draw) < 0.7
        routing = Routing(mask)
        routing.add("m", logits, 2, 0.0)
        statistics.add(routing, rows)
        for row, group in enumerate(rows):
            for token in logits[row][mask[row]]:
                gates[group].append(gate(token[None], 2)[0].tolist())
                p = token.softmax(0)
                entropy[group].append(-(p * p.log()).sum().item() / math.log(4))
    table = statistics.table()
    assert table["groups"] == ["a", "b"]
    assert table["tokens"] == [len(gates[0]), len(gates[1])]
    for group in (0, 1):
        known = torch.tensor(gates[group])
        assert table["share"][0][group] == pytest.approx(known.mean(0).tolist(), abs=1e-5)
        assert table["load"][0][group] == pytest.approx(((known > 0).float().mean(0) / 2).tolist(), abs=1e-5)
        assert table["entropy"][0][group] == pytest.approx(sum(entropy[group]) / len(entropy[group]), abs=1e-5)
    load = (torch.tensor(gates[0] + gates[1]) > 0).float().mean(0) / 2
    assert statistics.summary()["imbalance"] == pytest.approx(4 * load.max().item(), abs=1e-5)


def test_a_variant_without_routers_costs_no_balance_and_a_silent_router_is_an_error():
    assert Routing(routers=0).auxiliary_loss().item() == 0
    with pytest.raises(RuntimeError, match="no router ran"):
        Routing(routers=3).auxiliary_loss()
