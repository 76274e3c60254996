"""The PEFT tuner: puts a :class:`MaloraLinear` around every targeted linear layer of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from malora.balance import Routing
from malora.config import MaloraConfig
from malora.layer import CANNOT_MERGE, MaloraLayer, MaloraLinear, linear_shape
from malora.registry import register


class MaloraModel(BaseTuner):
    """A model with MALoRA adapters. ``get_peft_model(model, MaloraConfig(...))`` makes one (as ``.base_model``)."""

    prefix = "malora_"
    tuner_layer_cls = MaloraLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            if "Target modules" not in str(error):
                raise
            targets = getattr(self.peft_config[adapter_name], "target_modules", None)
            shown = sorted(targets) if isinstance(targets, set) else targets
            found = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear})
            raise ValueError(
                f"target_modules = {shown!r}: no such module; linear layers of this model: {', '.join(found) or 'none'}"
            ) from None

    def _create_and_replace(  # type: ignore[override]  # peft hands every tuner its own configuration
        self,
        peft_config: MaloraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, MaloraLayer):
            target.update_layer(adapter_name, peft_config)
            return
        new = self._create_new_module(peft_config, adapter_name, target, current_key)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)  # a further adapter does not train before it is made active
        self._replace_module(parent, target_name, new, target)

    @staticmethod
    def _create_new_module(config: MaloraConfig, adapter_name: str, target: nn.Module, key: str) -> MaloraLinear:
        try:
            linear_shape(target)
        except TypeError as error:
            raise TypeError(f"{key}: {error}; leave it out of target_modules") from None
        return MaloraLinear(target, adapter_name, config, key)

    def adapted_layers(self) -> dict[str, MaloraLayer]:
        """Module name -> adapted layer, sorted by name."""
        layers = {layer.name: layer for layer in self.modules() if isinstance(layer, MaloraLayer)}
        return dict(sorted(layers.items()))

    @contextmanager
    def routing(self, mask: Tensor | None = None) -> Iterator[Routing]:
        """Collects what the routers do while the block is open.

        ``mask`` (batch, position) is true where a token counts: ``attention_mask`` for the load-balance loss.
        The base model's own signature stays untouched::

            with peft_model.base_model.routing(attention_mask) as routing:
                loss = peft_model(**batch).loss + routing.auxiliary_loss()
                loss.backward()
        """
        layers = [layer for layer in self.modules() if isinstance(layer, MaloraLayer)]
        record = Routing(mask, routers=sum(name in layer.malora_router for layer in layers for name in layer.active_adapters))
        outer = [layer.routing for layer in layers]
        for layer in layers:
            layer.routing = record
        try:
            yield record
        finally:
            for layer, before in zip(layers, outer, strict=True):
                layer.routing = before

    @contextmanager
    def fixed_gates(self, gates: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """While open, every token uses these gates (module name -> N numbers); modules not named use 1/N each.

        Routers do not run meanwhile. Raises ValueError for an unknown module or a wrong count.
        """
        active = set(self.active_adapters)
        layers = {name: layer for name, layer in self.adapted_layers().items() if active & set(layer.configs)}
        if unknown := sorted(set(gates) - set(layers)):
            raise ValueError(f"gates: no adapted module {unknown[0]!r}; there are {', '.join(list(layers)[:4])} ...")
        fixed = {name: _gates_of(layer, gates.get(name)) for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.fixed_gates = fixed[name]
        try:
            yield
        finally:
            for layer in layers.values():
                layer.fixed_gates = None

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)


def _gates_of(layer: MaloraLayer, numbers: Sequence[float] | None) -> Tensor:
    """(N), in float32 or the adapter's float64, on its device."""
    adapters = [name for name in layer.active_adapters if name in layer.configs]
    if len(adapters) != 1:
        raise ValueError(f"{layer.name}: gates can be fixed with one active adapter, and there are {len(adapters)}")
    experts, A = layer.configs[adapters[0]].num_experts, layer.malora_A[adapters[0]]
    values = [1 / experts] * experts if numbers is None else [float(number) for number in numbers]
    if len(values) != experts or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{layer.name}: gates {values}: expected {experts} finite numbers")
    return torch.tensor(values, dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)


register(MaloraConfig, MaloraModel)
