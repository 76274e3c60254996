"""Writes a routed adapter with fixed gates as a standard LoRA.

With the same gates for every token the mixture is linear in x and so one LoRA. Letters as in :mod:`malora.adapter.core`: n inputs
and m outputs of a layer, N experts, d the rank of A, s the scale, g the gates.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from malora.adapter.export.gates import tuner_of
from malora.adapter.layer import MaloraLayer
from malora.adapter.model import Gates, MaloraModel
from malora.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_lora(model: Any, out_dir: Path | str, gates: Gates | None = None, adapter: str | None = None) -> LoraConfig:
    """Writes the adapter with fixed gates as a standard LoRA that PEFT loads without malora; returns its configuration.

    ``gates``: module name -> N numbers, as :func:`malora.mean_gates` makes them; a module not named, or all of them with None, gets
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
    base, adapter = tuner_of(model, adapter)
    fixed = base.gates(adapter, gates)
    layers = {name: layer for name, layer in base.adapted_layers().items() if name in fixed}
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
    return A.to(dtype).contiguous(), up.to(dtype).contiguous()


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
