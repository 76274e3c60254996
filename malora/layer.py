"""A linear layer with a MALoRA adapter: it keeps the wrapped layer and adds to its output."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from malora.balance import Routing
from malora.config import MaloraConfig
from malora.core import gate, start, update

CANNOT_MERGE = (
    "a MALoRA adapter cannot be merged into the weights: which experts are used depends on each token. "
    "Keep it as an adapter (it adds a few percent of time)."
)


class MaloraLayer(BaseTunerLayer):
    """Tensors by adapter name: ``malora_A`` (d, n), ``malora_P`` (N, r, d), ``malora_B`` (N, m, r),
    ``malora_router`` (N, n)."""

    adapter_layer_names = ("malora_A", "malora_P", "malora_B", "malora_router")
    other_param_names = ("configs",)

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        self.base_layer = base_layer
        self.name = name
        self.in_features, self.out_features = linear_shape(base_layer)
        self.malora_A = nn.ParameterDict()
        self.malora_P = nn.ParameterDict()
        self.malora_B = nn.ParameterDict()
        self.malora_router = nn.ParameterDict()
        self.configs: dict[str, MaloraConfig] = {}
        self.routing: Routing | None = None
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True

    def update_layer(self, adapter_name: str, config: MaloraConfig, inference_mode: bool = False) -> None:
        """Adds an adapter under this name, at its start."""
        assert config.expert_rank is not None and config.shared_rank is not None  # set by the configuration
        tensors = start(
            self.in_features,
            self.out_features,
            experts=config.num_experts,
            rank=config.expert_rank,
            shared=config.shared_rank,
            seed=config.init_seed,
            name=self.name,
            identity=config.init_weights,
        )
        self.configs[adapter_name] = config
        self.malora_A[adapter_name] = nn.Parameter(tensors.A)
        self.malora_P[adapter_name] = nn.Parameter(tensors.P)
        self.malora_B[adapter_name] = nn.Parameter(tensors.B)
        self.malora_router[adapter_name] = nn.Parameter(tensors.router)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged, so there is nothing to undo."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class MaloraLinear(nn.Module, MaloraLayer):
    """``y = W0 x + s * sum_t G_t(x) B_t P_t (A x)``, summed over the active adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MaloraConfig, name: str) -> None:
        super().__init__()
        MaloraLayer.__init__(self, base_layer, name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., n) -> (..., m), in the type of the base layer's output."""
        y: Tensor = self.base_layer(x, *args, **kwargs)  # (..., m)
        if self.disable_adapters:
            return y
        for adapter in self.active_adapters:
            if adapter in self.malora_A:
                y = self._adapt(y, x, adapter)
        return y

    def _adapt(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        config, A, router = self.configs[adapter], self.malora_A[adapter], self.malora_router[adapter]
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, A.dtype)  # a bfloat16 base with a float32 adapter
        logits = linear(x, router)  # (..., N)
        if self.routing is not None:
            key = self.name if len(self.active_adapters) == 1 else f"{self.name}:{adapter}"
            self.routing.add(key, logits, config.top_k, config.router_aux_loss_coef)
        gates = gate(logits, config.top_k)  # (..., N)
        return update(y, x, gates, A, self.malora_P[adapter], self.malora_B[adapter], config.scaling)  # (..., m)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: N={c.num_experts}, k={c.top_k}" for name, c in self.configs.items())


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(n, m) of a linear layer, also of one that another adapter wraps already."""
    if isinstance(layer, BaseTunerLayer):
        layer = layer.get_base_layer()
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"MALoRA adapts nn.Linear only, and a target module is a {type(layer).__name__}")
    return layer.in_features, layer.out_features
