"""What an adapter costs, in parameters and multiplications, against the other ways to spend them; counted from real shapes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from malora.adapter.config import MaloraConfig, Variant
from malora.adapter.layer import MaloraLayer

Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """Parameters of an adapter and of its alternatives with the same r and experts on the same layers.

    Every mixture's count contains its routers; ``saving`` leaves them out, as the paper does: 1 - malora / moe_lora. It can be
    negative: a large d costs more than it shares. ``macs`` are multiply-accumulates per token of a forward pass as this
    library computes it: all experts, stacked. Only k of N have a gate above zero; a kernel that computes no others would
    spend k / N of what the up-projections cost.
    """

    trainable: int  # this adapter, with its routers; without a frozen A
    total: int  # the base model and this adapter
    routers: int
    lora: int  # one LoRA of rank r:      r (n + m)
    moe_lora: int  # N LoRAs of rank r:   N r (n + m), and routers N n
    hydra_lora: int  # one A, N B:        r n + N r m, and routers N n
    saving: float
    lora_rank_of_equal_size: float  # the rank at which one plain LoRA has as many parameters as this adapter
    macs: int
    macs_lora: int
    macs_moe_lora: int
    macs_hydra_lora: int
    macs_base: int  # the adapted linear layers themselves


def parameter_report(
    source: nn.Module | MaloraConfig, base: nn.Module | Iterable[Shape] | None = None, *, adapter: str = "default"
) -> ParameterReport:
    """Counts a model's adapter, or what a configuration would cost.

    ``source`` is a ``PeftModel`` (or anything that contains adapted layers) or a configuration; a configuration is counted on
    ``base``: a model without adapters, ``(n, m)`` of each linear layer, or, when None, the model that
    ``base_model_name_or_path`` names (its configuration is enough, no weights are read). Raises ValueError where there is
    nothing to count.
    """
    if isinstance(source, MaloraConfig):
        if isinstance(base, nn.Module) or base is None:
            source, adapter = _on_meta(source, base), "default"
        else:
            shapes = list(base)
            return _count(source, shapes, sum(math.prod(shape) for shape in shapes))
    layers = [module for module in source.modules() if isinstance(module, MaloraLayer) and adapter in module.configs]
    if not layers:
        raise ValueError(f"the model has no MALoRA adapter named {adapter!r}")
    return _count(
        layers[0].configs[adapter], [(layer.in_features, layer.out_features) for layer in layers], _base_size(source, layers)
    )


def _count(config: MaloraConfig, layers: list[Shape], base_size: int) -> ParameterReport:
    own = _sizes(config, layers)
    rivals = {name: _sizes(_rival(config, name), layers) for name in ("lora", "moe_lora", "hydra")}
    whole = sum(own.values())
    trainable = whole - own["A"] * config.freeze_shared
    return ParameterReport(
        trainable=trainable,
        total=base_size + whole,
        routers=own["router"],
        lora=sum(rivals["lora"].values()),
        moe_lora=sum(rivals["moe_lora"].values()),
        hydra_lora=sum(rivals["hydra"].values()),
        saving=1 - (trainable - own["router"]) / (rivals["moe_lora"]["A"] + rivals["moe_lora"]["B"]),
        lora_rank_of_equal_size=trainable / sum(n + m for n, m in layers),
        macs=whole,
        macs_lora=sum(rivals["lora"].values()),
        macs_moe_lora=sum(rivals["moe_lora"].values()),
        macs_hydra_lora=sum(rivals["hydra"].values()),
        macs_base=sum(n * m for n, m in layers),
    )


def _sizes(config: MaloraConfig, layers: Iterable[Shape]) -> dict[str, int]:
    """Numbers in each tensor, over all layers; each of them is multiplied once per token."""
    sizes = dict.fromkeys(("A", "P", "B", "router"), 0)
    for inputs, outputs in layers:
        for key, shape in config.shapes(inputs, outputs).items():
            sizes[key] += math.prod(shape)
    return sizes


def _rival(config: MaloraConfig, variant: Variant) -> MaloraConfig:
    experts = 1 if variant == "lora" else config.num_experts
    return MaloraConfig(r=config.r, num_experts=experts, variant=variant)


def _base_size(model: nn.Module, layers: Iterable[MaloraLayer]) -> int:
    adapters = {
        id(parameter) for layer in layers for name in layer.adapter_layer_names for parameter in getattr(layer, name).values()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in adapters)


def _on_meta(config: MaloraConfig, base: nn.Module | None) -> nn.Module:
    """The base model's shapes without its numbers, adapted."""
    if base is None:
        name = config.base_model_name_or_path
        if not name:
            raise ValueError("parameter_report(config): give it a base model, the layers' shapes, or a base_model_name_or_path")
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))  # type: ignore[no-untyped-call]
    else:
        shapes = {id(own): nn.Parameter(own.detach().to("meta"), own.requires_grad) for own in base.parameters()}
        base = copy.deepcopy(base, shapes).to("meta")  # no weight is copied
    return get_peft_model(base, replace(config))  # PEFT writes into it
