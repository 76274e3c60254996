"""The PEFT tuner: puts a :class:`MaloraLinear` around every targeted linear layer of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from malora.adapter.balance import Routing
from malora.adapter.config import MaloraConfig
from malora.adapter.layer import CANNOT_MERGE, MaloraLayer, MaloraLinear
from malora.adapter.registry import register
from malora.errors import InputError

Gates = Mapping[str, Sequence[float] | Tensor]  # module name -> N numbers


class MaloraModel(BaseTuner):
    """A model with MALoRA adapters. ``get_peft_model(model, MaloraConfig(...))`` makes one (as ``.base_model``)."""

    prefix = "malora_"
    tuner_layer_cls = MaloraLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError:
            raise ValueError(_nothing_matches(self.peft_config[adapter_name], model)) from None

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
        self._replace_module(parent, target_name, MaloraLinear(target, adapter_name, peft_config, current_key), target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        """PEFT would drop ``adapter_names`` without a word and answer every row with the active adapter."""
        if adapter_names is not None:
            raise ValueError("adapter_names: a MALoRA adapter cannot be chosen row by row; use set_adapter, one batch an adapter")
        yield

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

    def gates(self, adapter: str, given: Gates | None) -> dict[str, Tensor]:
        """Module name -> its N gates (float64, CPU), for every layer of the adapter: those given, else 1/N each.

        Raises InputError for a module that the adapter does not have, a wrong count, or numbers that are not finite.
        """
        layers = {name: layer for name, layer in self.adapted_layers().items() if adapter in layer.configs}
        given = given or {}
        if unknown := sorted(set(given) - set(layers)):
            names = list(layers)
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise InputError(f"gates: {unknown[0]!r} is not adapted by {adapter!r}; adapted are {shown}")
        checked = {}
        for name, layer in layers.items():
            experts = layer.configs[adapter].num_experts
            values = [float(number) for number in given[name]] if name in given else [1 / experts] * experts
            if len(values) != experts:
                raise InputError(f"gates: {name}: {len(values)} numbers; expected one for each of its {experts} experts")
            if not all(math.isfinite(value) for value in values):
                raise InputError(f"gates: {name}: {values}; expected finite numbers")
            checked[name] = torch.tensor(values, dtype=torch.float64, device="cpu")
        return checked

    def active_adapter_name(self) -> str:
        """The one active adapter; InputError where there are several or none."""
        active = list(self.active_adapters)
        if len(active) != 1:
            raise InputError(f"expected one active adapter, and there are {len(active)}: {', '.join(active)}; set one by its name")
        return active[0]

    @contextmanager
    def fixed_gates(self, given: Gates | None) -> Iterator[None]:
        """While open, every token uses these gates of the active adapter, as :meth:`gates` reads them. No router runs meanwhile."""
        adapter, layers = self.active_adapter_name(), self.adapted_layers()
        gates = self.gates(adapter, given)
        outer = {name: layers[name].fixed_gates for name in gates}
        for name, numbers in gates.items():
            A = layers[name].malora_A[adapter]
            layers[name].fixed_gates = numbers.to(A.device, torch.promote_types(A.dtype, torch.float32))  # (N)
        try:
            yield
        finally:
            for name, before in outer.items():
                layers[name].fixed_gates = before

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; afterwards every module trains or not as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _nothing_matches(config: Any, model: nn.Module) -> str:
    """What to say where PEFT finds no module to adapt."""
    targets = config.target_modules
    told = f"target_modules = {sorted(targets) if isinstance(targets, set) else targets!r}: no such module"
    if isinstance(targets, str):
        told += " (a text is a regular expression for the whole name; a list takes endings)"
    keys = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    limits = [key for key in keys if getattr(config, key) not in (None, [], set())]
    if limits:
        told += " is left after " + " and ".join(f"{key} = {getattr(config, key)!r}" for key in limits)
    found = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear})
    return f"{told}; linear layers of this model: {', '.join(found) or 'none'}"


register(MaloraConfig, MaloraModel)
