"""Writes a routed adapter with fixed gates as a standard LoRA, and measures how far that is from the routed model.

With the same gates for every token the mixture is linear in x and so one LoRA. Letters as in :mod:`malora.core`: n inputs
and m outputs of a layer, N experts, d the rank of A, s the scale, g the gates.
"""

from __future__ import annotations

import filecmp
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import nll_loss
from transformers import PreTrainedTokenizerBase

from malora.core import gate
from malora.data import Row, find_files
from malora.encode import EncodedRow, encode
from malora.errors import InputError
from malora.layer import MaloraLayer
from malora.model import MaloraModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank

Gates = Mapping[str, Sequence[float] | Tensor]
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


def export_lora(model: Any, out_dir: Path | str, gates: Gates | None = None, adapter: str | None = None) -> LoraConfig:
    """Writes the adapter with fixed gates as a standard LoRA that PEFT loads without malora; returns its configuration.

    ``gates``: module name -> N numbers, as :func:`mean_gates` makes them; a module not named, or all of them with None, gets
    1/N for each expert. ``adapter``: its name; None: the active one. With g the gates and s the scale of the adapter::

        malora    A = A            B = s * sum_t g_t B_t P_t       rank d
        hydra     A = A            B = s * sum_t g_t B_t           rank r
        moe_lora  A = A_1 ... A_N  B = s * [g_1 B_1 ... g_N B_N]   rank N r
        lora      A = A            B = s * B                       rank r

    All modules get the same rank, and lora_alpha is that rank, so PEFT scales by exactly 1. The sums are made in float64
    and stored in the adapter's own type, at least float32. The model is left as it was.

    Modules trained whole (``modules_to_save``) are written too and loaded by PEFT, but not by vLLM: a UserWarning says so.
    The folder appears whole or not at all; one that holds anything but this very export is refused with InputError.
    """
    base, adapter = _tuner(model, adapter)
    layers = _layers(base, adapter)
    fixed = _check_gates(layers, adapter, gates)
    target = check_out(out_dir)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        A, B = _as_lora(layer, adapter, fixed[name])
        if not (A.isfinite().all() and B.isfinite().all()):
            raise InputError(f"{name}: the adapter {adapter!r} holds weights that are not finite; it cannot be exported")
        tensors[f"base_model.model.{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{name}.lora_B.weight"] = B
    ranks = {A.shape[0] for key, A in tensors.items() if key.endswith("lora_A.weight")}
    assert len(ranks) == 1  # one configuration, one rank
    config = _lora_config(model, base, adapter, layers, ranks.pop())
    if config.modules_to_save:
        tensors |= _modules_to_save(model, adapter)
        warnings.warn(
            f"{target}: the adapter comes with whole modules ({', '.join(sorted(config.modules_to_save))}); PEFT loads them, vLLM "
            "does not load such an adapter",
            stacklevel=2,
        )
    _write(target, config, tensors)
    return config


def mean_gates(model: Any, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Module name -> the mean of its N gates over all counted tokens of the batches, for the active adapter.

    A batch holds ``input_ids`` and, optionally, ``attention_mask`` (batch, position); every token of the attention mask
    counts alike, or those of ``mask`` where a batch has one. A module without a router has the gate 1; one that has seen no
    counted token is left out.
    """
    base, adapter = _tuner(model, None)
    layers = _layers(base, adapter)
    sums: dict[str, Tensor] = {}  # (N), float64
    counts: dict[str, float] = {}
    with _measuring(model):
        for batch in batches:
            inputs, counted = _inputs(model, batch)
            with base.routing(counted) as routing:
                model(**inputs, use_cache=False)
            for name, logits in routing.logits.items():
                total, count = _sum_gates(logits, routing.top_k[name], counted)
                sums[name] = sums.get(name, torch.zeros_like(total)) + total
                counts[name] = counts.get(name, 0.0) + count
    means = {name: (total / counts[name]).tolist() for name, total in sums.items() if counts[name]}
    without = {name: [1.0] for name, layer in layers.items() if adapter not in layer.malora_router}
    if not means and not without:
        raise InputError("the batches hold no token that counts, so there are no gates to take the mean of")
    return dict(sorted((means | without).items()))


def routing_gap(model: Any, batches: Iterable[Batch], gates: Gates | None = None) -> RoutingGap:
    """How far the model with these fixed gates (None: uniform) is from the token-routed one, for the active adapter.

    Batches as for :func:`mean_gates`. Measured where a token of ``labels`` is to be predicted (-100: not), else at every next
    token that counts.
    """
    from malora.trainer import answer_logits, can_slice  # transformers' Trainer takes seconds to import

    base, adapter = _tuner(model, None)
    fixed = {name: numbers.tolist() for name, numbers in _check_gates(_layers(base, adapter), adapter, gates).items()}
    sliced = can_slice(model)
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    with _measuring(model):
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


# The adapter


def _tuner(model: Any, adapter: str | None) -> tuple[MaloraModel, str]:
    """The tuner of a PeftModel and the adapter asked for, by default the active one."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, MaloraModel):
        kind = type(model).__name__ if base is None else f"{type(model).__name__} with {type(base).__name__}"
        raise InputError(f"expected a PeftModel with an adapter of malora (MaloraConfig), and this is a {kind}")
    if adapter is None:
        active = list(base.active_adapters)
        if len(active) != 1:
            raise InputError(
                f"expected one active adapter, and there are {len(active)}: {', '.join(active)}; choose one by its name"
            )
        return base, active[0]
    if adapter not in base.peft_config:
        raise InputError(f"the model has no adapter {adapter!r}; it has {', '.join(sorted(base.peft_config))}")
    return base, adapter


def _layers(base: MaloraModel, adapter: str) -> dict[str, MaloraLayer]:
    return {name: layer for name, layer in base.adapted_layers().items() if adapter in layer.malora_A}


def _check_gates(layers: Mapping[str, MaloraLayer], adapter: str, gates: Gates | None) -> dict[str, Tensor]:
    """Module name -> (N), float64, for every module."""
    gates = gates or {}
    if unknown := sorted(set(gates) - set(layers)):
        names = list(layers)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise InputError(f"gates: {unknown[0]!r} is not adapted by {adapter!r}; adapted are {shown}")
    checked = {}
    for name, layer in layers.items():
        experts = layer.configs[adapter].num_experts
        given = gates.get(name)
        values = [1 / experts] * experts if given is None else [float(number) for number in given]
        if len(values) != experts:
            raise InputError(f"gates: {name}: {len(values)} numbers; expected one for each of its {experts} experts")
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"gates: {name}: {values}; expected finite numbers")
        checked[name] = torch.tensor(values, dtype=torch.float64)
    return checked


@torch.no_grad()
def _as_lora(layer: MaloraLayer, adapter: str, gates: Tensor) -> tuple[Tensor, Tensor]:
    """A (rank, n) and B (m, rank) of the layer with these gates (N)."""
    config = layer.configs[adapter]
    A = layer.malora_A[adapter].detach().cpu()
    B = layer.malora_B[adapter].detach().cpu().double() * (config.scaling * gates).view(-1, 1, 1)  # (N, m, r)
    if adapter in layer.malora_P:
        P = layer.malora_P[adapter].detach().cpu().double()  # (N, r, d)
        up = torch.einsum("tmr,trd->md", B, P)
    elif config.variant == "moe_lora":
        up = B.permute(1, 0, 2).flatten(1)  # (m, N*r): an expert's columns meet its rows of A
    else:
        up = B.sum(dim=0)  # (m, r)
    dtype = torch.promote_types(A.dtype, torch.float32)
    return A.to(dtype).contiguous().clone(), up.to(dtype).contiguous()


# The folder


def _lora_config(model: Any, base: MaloraModel, adapter: str, layers: Mapping[str, MaloraLayer], rank: int) -> LoraConfig:
    """With names that match exactly the adapted layers."""
    own: Any = base.peft_config[adapter]
    name_or_path = own.base_model_name_or_path or getattr(model.get_base_model(), "name_or_path", None)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[],
        lora_dropout=0.0,
        bias="none",
        modules_to_save=sorted(own.modules_to_save) if own.modules_to_save else None,
        task_type=own.task_type,
        base_model_name_or_path=name_or_path,
        revision=own.revision,
        auto_mapping=own.auto_mapping,
        inference_mode=True,
    )
    config.target_modules = _targets(config, list(layers), _modules_of_base(model, base))
    return config


def _targets(config: LoraConfig, adapted: Sequence[str], modules: Sequence[str]) -> list[str] | str:
    """The last parts of the names if PEFT finds exactly the adapted modules by them, else the whole names.

    PEFT takes a name for an ending, too; where even whole names match more than themselves, a regular expression is left.
    """
    endings = sorted({name.rpartition(".")[2] for name in adapted})
    for names in (endings, sorted(adapted)):
        config.target_modules = names
        if {name for name in modules if check_target_module_exists(config, name)} == set(adapted):
            return names
    return "|".join(re.escape(name) for name in sorted(adapted))


def _modules_of_base(model: Any, base: MaloraModel) -> list[str]:
    """The names of the base model's modules, without what adapters have put inside of them."""
    inside = tuple(f"{name}." for name in base.adapted_layers())
    return [name for name, _ in model.get_base_model().named_modules() if not name.startswith(inside)]


def _modules_to_save(model: Any, adapter: str) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    whole = {key: tensor for key, tensor in state.items() if not key.rpartition(".")[2].startswith(MaloraModel.prefix)}
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in whole.items()}


def check_out(out_dir: Path | str) -> Path:
    """The folder to export to; refuses one that holds something else than an export."""
    out = Path(out_dir).expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out_dir}: a file stands where the folder is to be; choose another place")
    foreign = {path.name for path in out.iterdir()} - {CONFIG, WEIGHTS} if out.is_dir() else set()
    if foreign - {_unfinished(out).name}:
        raise InputError(f"{out_dir}: holds something else ({min(foreign)}); choose an empty or a new folder")
    return out


def _unfinished(out: Path) -> Path:
    """On the same file system as its final place."""
    return out / ".unfinished" if out.is_dir() else out.with_name(f".{out.name}.unfinished")


def _write(out: Path, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = _unfinished(out)
    shutil.rmtree(work, ignore_errors=True)  # of an export that was killed
    work.mkdir()
    try:
        (work / WEIGHTS).write_bytes(
            save(dict(sorted(tensors.items())), metadata={"format": "pt"})
        )  # save_file: for the owner only
        config.save_pretrained(str(work))
        if not out.is_dir():
            work.rename(out)
            return
        for name in (WEIGHTS, CONFIG):
            if (out / name).exists() and not filecmp.cmp(work / name, out / name, shallow=False):
                raise InputError(f"{out}: holds another adapter; remove it or choose a new folder")
        for name in (WEIGHTS, CONFIG):
            (work / name).replace(out / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# The measurements


@contextmanager
def _measuring(model: Any) -> Iterator[None]:
    """No gradients, no dropout; afterwards every module trains or not as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


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
    return ids.masked_fill(~(counted & before), -100)


def _compare(routed: Tensor, fixed: Tensor, targets: Tensor) -> Tensor:
    """Summed over the tokens: both losses, the divergence, the agreements. (tokens, vocabulary) twice, (tokens) -> (4)"""
    p, q = routed.double().log_softmax(dim=-1), fixed.double().log_softmax(dim=-1)
    weight = p.exp()
    kl = torch.where(weight > 0, weight * (p - q), 0.0).sum()
    agree = (p.argmax(dim=-1) == q.argmax(dim=-1)).sum().double()
    return torch.stack([nll_loss(p, targets, reduction="sum"), nll_loss(q, targets, reduction="sum"), kl, agree])


# Rows of a dataset


@dataclass(frozen=True, kw_only=True)
class GateRows:
    """Rows for :func:`mean_gates`, and others for :func:`routing_gap`."""

    gates: list[EncodedRow]
    held_out: list[EncodedRow]
    trained: bool  # held_out is of the training split, for want of validation rows


def gate_rows(
    data: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int = 256,
    language: str | None = None,
    task: str | None = None,
    max_tokens: int = 1024,
) -> GateRows:
    """Up to ``rows`` rows of a dataset, those of validation first and spread evenly over languages and tasks.

    A quarter of them is held out from the gates: validation rows only, and so perhaps fewer, unless there are none.
    """
    source = find_files(Path(data))
    strata: set[tuple[str, str]] = set()
    kept: list[EncodedRow] = []
    validation = 0
    for split in ("validation", "train"):
        found = _spread(source.rows(split), strata, language, task, rows)
        while len(kept) < rows and (chunk := list(islice(found, rows - len(kept)))):
            kept += encode(chunk, tokenizer, max_tokens).rows
        if split == "validation":
            validation = len(kept)
        if len(kept) >= rows:
            break
    if not kept and not any(_is_wanted(*stratum, language, task) for stratum in strata):
        wanted = " and ".join(f"{key} {value!r}" for key, value in (("language", language), ("task", task)) if value)
        there = ", ".join(f"{code}_{kind}" for code, kind in sorted(strata))
        raise InputError(f"{data}: no row has {wanted or 'messages'}; there are {there or 'no rows'}")
    if len(kept) < 2:
        raise InputError(f"{data}: {len(kept)} of the rows asked for have an answer; at least two are needed, one of them held out")
    measured = max(1, min(len(kept) // 4, validation or len(kept)))
    return GateRows(gates=kept[measured:], held_out=kept[:measured], trained=not validation)


def _spread(rows: Iterable[Row], strata: set[tuple[str, str]], language: str | None, task: str | None, limit: int) -> Iterator[Row]:
    """The wanted rows, one of each language and task in turn; ``strata`` learns which of them there are."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        strata.add((row.language, row.task))
        group = groups.setdefault(row.stratum, [])
        if len(group) < limit and _is_wanted(row.language, row.task, language, task):
            group.append(row)
    for turn in zip_longest(*(groups[key] for key in sorted(groups))):
        yield from (row for row in turn if row is not None)


def _is_wanted(row_language: str, row_task: str, language: str | None, task: str | None) -> bool:
    return language in (None, row_language) and task in (None, row_task)


def answer_batches(
    rows: Sequence[EncodedRow], batch_size: int = 4, on_rows: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[dict[str, Tensor]]:
    """Padded batches of rows of like length, with ``labels`` and a ``mask`` of the answers' tokens."""
    from malora.trainer import IGNORED, collate  # transformers' Trainer takes seconds to import

    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.id))
    for begin in range(0, len(ordered), batch_size):
        batch = collate(ordered[begin : begin + batch_size])
        yield {**batch, "mask": batch["labels"] != IGNORED}
        on_rows(min(begin + batch_size, len(ordered)), len(ordered))
