"""How many parameters an adapter trains, against the other ways to spend them; counted from the layers' shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from malora.layer import MaloraLayer


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """Trainable parameters of an adapter and of its alternatives with the same r and experts on the same layers.

    Every mixture's count contains its routers (N n per layer), which are the same for all; ``saving`` leaves them out,
    as the paper does: 1 - malora / moe_lora. It can be negative: a large d costs more than it shares.
    """

    trainable: int  # this adapter, with its routers
    total: int  # the base model and this adapter
    routers: int
    lora: int  # one LoRA of rank r:      r (n + m)
    moe_lora: int  # N LoRAs of rank r:   N r (n + m), and routers
    hydra_lora: int  # one A, N B:        r n + N m r, and routers
    saving: float
    lora_rank_of_equal_size: float  # the rank at which one plain LoRA has as many parameters as this adapter


def parameter_report(model: nn.Module, adapter: str = "default") -> ParameterReport:
    """Counts over the adapted layers of ``model`` (a ``PeftModel``, or anything that contains them)."""
    layers = [module for module in model.modules() if isinstance(module, MaloraLayer) and adapter in module.configs]
    if not layers:
        raise ValueError(f"the model has no MALoRA adapter named {adapter!r}")
    lora = routers = moe_lora = hydra = widths = own = 0
    for layer in layers:
        config, n, m = layer.configs[adapter], layer.in_features, layer.out_features
        widths += n + m
        lora += config.r * (n + m)
        moe_lora += config.num_experts * config.r * (n + m)
        hydra += config.r * n + config.num_experts * config.r * m
        routers += layer.malora_router[adapter].numel()
        own += sum(t[adapter].numel() for t in (layer.malora_A, layer.malora_P, layer.malora_B))
    trainable = own + routers
    return ParameterReport(
        trainable=trainable,
        total=_base_size(model, layers) + trainable,
        routers=routers,
        lora=lora,
        moe_lora=moe_lora + routers,
        hydra_lora=hydra + routers,
        saving=1 - own / moe_lora,
        lora_rank_of_equal_size=trainable / widths,
    )


def _base_size(model: nn.Module, layers: Iterable[MaloraLayer]) -> int:
    adapters = {
        id(parameter) for layer in layers for name in layer.adapter_layer_names for parameter in getattr(layer, name).values()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in adapters)
