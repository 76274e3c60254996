"""The PEFT tuner: puts a :class:`MaloraLinear` around every targeted linear layer of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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
        record = Routing(mask)
        layers = [layer for layer in self.modules() if isinstance(layer, MaloraLayer)]
        outer = [layer.routing for layer in layers]
        for layer in layers:
            layer.routing = record
        try:
            yield record
        finally:
            for layer, before in zip(layers, outer, strict=True):
                layer.routing = before

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)


register(MaloraConfig, MaloraModel)
