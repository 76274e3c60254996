"""What one training step of each adapter costs: time, memory, parameters.

    python benchmarks/adapter.py                     # all shapes, one thread and two; ~15 minutes; goes on where it was stopped
    python benchmarks/adapter.py --shapes layer      # one of them
    python benchmarks/adapter.py --report            # the tables of what was measured, and every bar that was missed

A step is forward and backward, the gradient of the input included. All variants of a shape take turns in one process, in an
order that rotates, so that whatever else the machine does hits them alike. That is done in several processes, since where a
process happens to lie in memory moves the ratio of two variants by up to 5 % for as long as it lives; a ratio is the median of
the processes' ratios of medians, with their range beside it. Leave the machine alone meanwhile. Nothing is downloaded.

Shapes: `layer`, one 1024 x 1024 linear layer and 2,048 tokens; `llama`, four Llama blocks of width 1024, adapters on all seven
linears; `smollm2`, four blocks with SmolLM2-135M's real widths (576, 192, 1536; the model has thirty of them, all alike).
N = 8, k = 2, r = 8, d = 16 unless the name says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from typing import Any

import malora  # noqa: F401  # isort: skip  # before torch: it sets how OpenMP waits
import torch  # isort: skip
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaModel

from malora.adapter.balance import RoutingStatistics
from malora.adapter.config import MaloraConfig
from malora.adapter.core import gate, start, top_k_mask
from malora.adapter.layer import MaloraLinear
from malora.adapter.parameters import parameter_report

R, D, EXPERTS, TOP_K, ALPHA = 8, 16, 8, 2, 16
BATCH, LENGTH = 4, 512
WIDTHS = {"llama": (1024, 2816, 16, 16), "smollm2": (576, 1536, 9, 3)}  # hidden, intermediate, heads, key-value heads
BLOCKS = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RESULTS = Path(__file__).parent / "results" / "adapter.json"
SHAPES = ("layer", "llama", "smollm2")
ROUNDS = {"layer": 14, "llama": 3, "smollm2": 5}  # in each process
PROCESSES = {"layer": 5, "llama": 2, "smollm2": 3}
WARM_UP = 2
MIB = 2**20

OURS: dict[str, dict[str, Any]] = {
    "malora": {"shared_rank": D},
    "malora, d = r": {},
    "malora, shared_router": {"shared_rank": D, "shared_router": True},
    "malora, freeze_shared": {"shared_rank": D, "freeze_shared": True},
    "malora, both": {"shared_rank": D, "shared_router": True, "freeze_shared": True},
    "moe_lora": {"variant": "moe_lora"},
    "hydra": {"variant": "hydra"},
    "lora": {"variant": "lora"},
}

# (shape, variant, rival, at most): what this benchmark is there to find out
BARS = [
    ("layer", "malora", "PEFT LoRA", 1.00),
    ("layer", "malora", "frozen base", 1.30),
    ("layer", "MoLoRA, gather", "malora", -1.30),
    ("layer", "MoLoRA, dense loop", "malora", -2.80),
    ("llama", "malora", "PEFT LoRA", 1.00),
    ("llama", "malora", "frozen base", 1.30),
    ("smollm2", "malora", "PEFT LoRA", 1.10),
    ("smollm2", "malora", "PEFT LoRA, equal size", 1.00),
]


class GatherMoLoRA(nn.Module):
    """A mixture of LoRAs as MixLoRA computes it: each expert gathers its tokens, and index_add brings them back."""

    def __init__(self, base: nn.Linear, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.base = base
        self.A = nn.ParameterList(nn.Parameter(part) for part in tensors["A"].split(R))
        self.B = nn.ParameterList(nn.Parameter(part) for part in tensors["B"])
        self.router = nn.Parameter(tensors["router"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        tokens = x.flatten(0, -2)
        weights, experts = linear(tokens, self.router).topk(TOP_K, dim=-1)  # (T, k)
        weights = weights.softmax(dim=-1)
        out = torch.zeros_like(y).flatten(0, -2)
        for number, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            token, slot = (experts == number).nonzero(as_tuple=True)
            if not len(token):
                continue
            own = linear(linear(tokens[token], A), B) * (ALPHA / R)
            out.index_add_(0, token, own * weights[token, slot].unsqueeze(-1))
        return y + out.view_as(y)


class DenseMoLoRA(GatherMoLoRA):
    """A mixture of LoRAs as LoRAMoE and HydraLoRA compute it: every expert sees every token."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        logits = linear(x, self.router)
        gates = logits.masked_fill(~top_k_mask(logits, TOP_K), -torch.inf).softmax(dim=-1)  # (..., N)
        for number, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            y = y + gates[..., number : number + 1] * linear(linear(x, A), B) * (ALPHA / R)
        return y


class FormulaMALoRA(nn.Module):
    """MALoRA as its formula is written: S_A x once, then expert by expert over the gathered rows of width d."""

    def __init__(self, base: nn.Linear, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.base = base
        self.A, self.P, self.B, self.router = (nn.Parameter(tensors[key]) for key in ("A", "P", "B", "router"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        tokens = x.flatten(0, -2)
        u = linear(tokens, self.A)
        weights, experts = linear(tokens, self.router).topk(TOP_K, dim=-1)
        weights = weights.softmax(dim=-1)
        out = torch.zeros_like(y).flatten(0, -2)
        for number in range(EXPERTS):
            token, slot = (experts == number).nonzero(as_tuple=True)
            own = linear(linear(u[token], self.P[number]), self.B[number]) * (ALPHA / R)
            out.index_add_(0, token, own * weights[token, slot].unsqueeze(-1))
        return y + out.view_as(y)


class StackedByAutograd(FormulaMALoRA):
    """The stacked product without a derivative of its own: what `malora` computes, left to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        gates = gate(linear(x, self.router), TOP_K) * (ALPHA / R)  # (..., N)
        z = linear(linear(x, self.A), self.P.flatten(0, 1)).unflatten(-1, (EXPERTS, -1))  # (..., N, r)
        h = (z * gates.unsqueeze(-1)).flatten(-2)  # (..., N*r)
        stacked = self.B.transpose(1, 2).flatten(0, 1)  # (N*r, m)
        return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), stacked).view_as(y)


def our_config(**options: Any) -> MaloraConfig:
    experts = {} if options.get("variant") == "lora" else {"num_experts": EXPERTS}
    if options.get("variant", "malora") in ("malora", "moe_lora"):
        experts["top_k"] = TOP_K
    return MaloraConfig(r=R, lora_alpha=ALPHA, **experts, **options)


def frozen(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False)
    return layer.requires_grad_(False)


def ours(inputs: int, outputs: int, **options: Any) -> MaloraLinear:
    return MaloraLinear(frozen(inputs, outputs), "default", our_config(init_weights=False, **options), "layer")


def tensors_of(inputs: int, outputs: int, **options: Any) -> dict[str, Tensor]:
    """What `ours` starts with."""
    return start(our_config(**options).shapes(inputs, outputs), seed=0, name="layer", identity=False)


def layer_variants(inputs: int = 1024, outputs: int = 1024) -> dict[str, nn.Module]:
    equal = round(parameter_report(our_config(shared_rank=D), [(inputs, outputs)]).lora_rank_of_equal_size)

    def peft_lora(rank: int) -> nn.Module:
        return LoraLinear(frozen(inputs, outputs), "default", LoraConfig(r=rank, lora_alpha=ALPHA), r=rank, lora_alpha=ALPHA)

    variants: dict[str, nn.Module] = {
        "frozen base": frozen(inputs, outputs),
        "PEFT LoRA": peft_lora(R),
        "PEFT LoRA, equal size": peft_lora(equal),
    }
    variants |= {name: ours(inputs, outputs, **options) for name, options in OURS.items()}
    mixture = tensors_of(inputs, outputs, variant="moe_lora")
    variants["MoLoRA, gather"] = GatherMoLoRA(frozen(inputs, outputs), mixture)
    variants["MoLoRA, dense loop"] = DenseMoLoRA(frozen(inputs, outputs), mixture)
    own = tensors_of(inputs, outputs, shared_rank=D)
    variants["malora, the formula as written"] = FormulaMALoRA(frozen(inputs, outputs), own)
    variants["malora, stacked by autograd"] = StackedByAutograd(frozen(inputs, outputs), own)
    return variants


def stack(shape: str) -> nn.Module:
    hidden, intermediate, heads, kv = WIDTHS[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=BLOCKS,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        use_cache=False,
    )
    return LlamaModel(config).requires_grad_(False)


def stack_variants(shape: str) -> dict[str, nn.Module]:
    equal = round(parameter_report(our_config(shared_rank=D, target_modules=TARGETS), stack(shape)).lora_rank_of_equal_size)
    variants: dict[str, nn.Module] = {"frozen base": stack(shape)}
    for name, rank in (("PEFT LoRA", R), ("PEFT LoRA, equal size", equal)):
        variants[name] = get_peft_model(stack(shape), LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=TARGETS))
    for name in ("malora", "malora, shared_router", "malora, both", "moe_lora"):
        variants[name] = get_peft_model(stack(shape), our_config(target_modules=TARGETS, **OURS[name]))
    return variants


def step_of(shape: str) -> tuple[dict[str, nn.Module], Callable[[nn.Module], None]]:
    """The variants, and what one step of any of them is."""
    if shape == "layer":
        torch.manual_seed(1)
        x, grad = torch.randn(BATCH, LENGTH, 1024, requires_grad=True), torch.randn(BATCH, LENGTH, 1024)

        def step(layer: nn.Module) -> None:
            layer(x).backward(grad)
            x.grad = None

        return layer_variants(), step
    hidden = WIDTHS[shape][0]
    torch.manual_seed(1)
    embeds, grads = torch.randn(BATCH, LENGTH, hidden, requires_grad=True), torch.randn(BATCH, LENGTH, hidden)

    def step_stack(model: nn.Module) -> None:
        model(inputs_embeds=embeds).last_hidden_state.backward(grads)
        embeds.grad = None

    return stack_variants(shape), step_stack


def clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def time_steps(variants: dict[str, nn.Module], step: Callable[[nn.Module], None], rounds: int, note: str) -> dict[str, list[float]]:
    """Seconds of each step, round by round; the first rounds are not among them."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            clear(variants[name])
            begin = time.perf_counter()
            step(variants[name])
            seconds[name].append(time.perf_counter() - begin)
        print(f"\r{note}: round {number + 1} of {rounds + WARM_UP}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def kept_bytes(model: nn.Module, step: Callable[[nn.Module], None], apart: set[int]) -> int:
    """Bytes of the tensors saved for the backward pass, each storage once; parameters and ``apart`` do not count."""
    apart = apart | {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(model)
    return sum(kept.values())


def peak_bytes(model: nn.Module, step: Callable[[nn.Module], None]) -> int:
    """The most that is allocated during a training step: the model, its gradients, AdamW's state and the step itself."""
    clear(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained) if trained else None

    def whole() -> None:
        step(model)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()

    whole()
    standing = sum(parameter.numel() * 4 for parameter in model.parameters()) + sum(
        2 * parameter.numel() * 4 for parameter in trained
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        whole()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return standing + peak


def statistics_cost(shape: str, rounds: int) -> dict[str, float]:
    """What gathering costs: the step with its load-balance loss, and the share of it that the statistics take. (seconds)"""
    model = get_peft_model(
        stack(shape),
        our_config(shared_rank=D, target_modules=TARGETS),
    )
    embeds = torch.randn(BATCH, LENGTH, WIDTHS[shape][0], requires_grad=True)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    gathered = RoutingStatistics([f"language{number}" for number in range(20)])
    times: dict[str, list[float]] = {"step": [], "balance": [], "statistics": []}
    for _ in range(rounds):
        clear(model)
        begin = time.perf_counter()
        with model.base_model.routing(mask) as routing:
            out = model(inputs_embeds=embeds).last_hidden_state
            middle = time.perf_counter()
            loss = routing.auxiliary_loss()
            times["balance"].append(time.perf_counter() - middle)
            (out.square().mean() + loss).backward()
        times["step"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        gathered.add(routing, [0, 5, 5, 19])
        times["statistics"].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(shape: str, threads: int, rounds: int, *, facts: bool) -> dict[str, Any]:
    """In this process: seconds of every step, and with ``facts`` what does not depend on the clock."""
    torch.set_num_threads(threads)
    variants, step = step_of(shape)
    result: dict[str, Any] = {"seconds": time_steps(variants, step, rounds, f"{shape}, {threads} thread(s)")}
    if facts:
        trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in variants.items()}
        result["trainable"] = trained
        result["peak"] = {name: peak_bytes(model, step) for name, model in variants.items()}
        if shape == "layer":
            x = torch.randn(BATCH, LENGTH, 1024, requires_grad=True)
            known = {x.untyped_storage().data_ptr()}
            result["kept"] = {name: kept_bytes(model, lambda layer: layer(x).sum(), known) for name, model in variants.items()}
        else:
            result["statistics"] = statistics_cost(shape, max(3, rounds // 2))
    return result


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "torch": torch.__version__,
    }


def key_of(shape: str, threads: int) -> str:
    return f"{shape}, {threads} thread{'s' if threads > 1 else ''}"


def ratio(run: dict[str, Any], one: str, two: str) -> tuple[float, float, float]:
    """The median of the processes' ratios of medians, the least and the largest of them."""
    pairs = zip(run["seconds"][one], run["seconds"][two], strict=True)
    ratios = sorted(statistics.median(first) / statistics.median(second) for first, second in pairs)
    return statistics.median(ratios), ratios[0], ratios[-1]


def report(results: dict[str, Any]) -> tuple[str, list[str]]:
    """The tables in Markdown, and the bars that were missed."""
    lines, missed = [], []
    about = results["machine"]
    lines.append(f"{about['processor']}, {about['cores']} cores, {about['system']}, torch {about['torch']}.")
    for shape in SHAPES:
        runs = {threads: results["runs"].get(key_of(shape, threads)) for threads in (1, 2)}
        single = runs[1]
        if single is None:
            continue
        lines += ["", f"### {shape}", ""]
        head = "| variant | trainable |" + "".join(f" ms, {t} | x base | x PEFT LoRA (range) |" for t in (1, 2) if runs[t])
        head += " kept, MiB |" * ("kept" in single) + " peak x PEFT LoRA |"
        lines += [head, "|---|" + "---:|" * (head.count("|") - 2)]
        for name in single["seconds"]:
            cells = [name, f"{single['trainable'][name]:,}"]
            for run in (run for run in runs.values() if run):
                middle, low, high = ratio(run, name, "PEFT LoRA")
                base = ratio(run, name, "frozen base")[0]
                cells += [
                    f"{statistics.median(chain.from_iterable(run['seconds'][name])) * 1000:.1f}",
                    f"{base:.2f}",
                    f"{middle:.3f} ({low:.2f}-{high:.2f})",
                ]
            if "kept" in single:
                cells.append(f"{single['kept'][name] / MIB:.2f}")
            cells.append(f"{single['peak'][name] / single['peak']['PEFT LoRA']:.3f}")
            lines.append("| " + " | ".join(cells) + " |")
        if "statistics" in single:
            cost = single["statistics"]
            share, balance = cost["statistics"] / cost["step"], cost["balance"] / cost["step"]
            lines += ["", f"Routing statistics: {share:.2%} of a step; the load-balance loss (forward): {balance:.2%}. One thread."]
            if share >= 0.02:
                missed.append(f"{shape}: routing statistics take {share:.2%} of a step, bar 2 %")
        if "kept" in single and single["kept"]["malora"] > 1.5 * MIB:
            missed.append(f"{shape}: malora keeps {single['kept']['malora'] / MIB:.2f} MiB, bar 1.5")
        if (peak := single["peak"]["malora"] / single["peak"]["PEFT LoRA"]) > 1.05:
            missed.append(f"{shape}: peak memory {peak:.3f} x PEFT LoRA, bar 1.05")
        for of, one, two, bar in BARS:
            for threads, run in ((t, run) for t, run in runs.items() if run and of == shape):
                value = ratio(run, one, two)[0]
                if (value < -bar) if bar < 0 else (value > bar):
                    missed.append(f"{key_of(shape, threads)}: {one} takes {value:.3f} x {two}, bar {abs(bar)}")
    return "\n".join(lines), missed


def in_a_process(shape: str, threads: int, rounds: int, *, facts: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", shape, str(threads), str(int(facts)), "--rounds", str(rounds)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def save(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results) + "\n")
    unfinished.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument(
        "--rounds", type=int, help="steps of each variant in a process; default 14 for the layer, 3 and 5 for the stacks"
    )
    parser.add_argument("--processes", type=int, help="default 5 for the layer, 2 and 3 for the stacks")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="what is there already is not measured again (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "THREADS", "FACTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        shape, threads = arguments.one[0], int(arguments.one[1])
        print(json.dumps(measure(shape, threads, arguments.rounds, facts=arguments.one[2] == "1")))
        return 0
    results: dict[str, Any] = {"machine": machine(), "runs": {}}
    if arguments.out.is_file():
        results = json.loads(arguments.out.read_text())
    if not arguments.report:
        results["machine"] = machine()
        for shape, threads in product(arguments.shapes, arguments.threads):
            run = results["runs"].setdefault(key_of(shape, threads), {"seconds": {}})
            if arguments.again:
                run["seconds"] = {}
            while (done := len(next(iter(run["seconds"].values()), []))) < (arguments.processes or PROCESSES[shape]):
                print(f"process {done + 1}:", file=sys.stderr)
                part = in_a_process(shape, threads, arguments.rounds or ROUNDS[shape], facts=threads == 1 and not done)
                for name, seconds in part.pop("seconds").items():
                    run["seconds"].setdefault(name, []).append(seconds)
                run |= part
                save(results, arguments.out)
    tables, missed = report(results)
    print(tables)
    for line in missed:
        print(f"MISSED  {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
