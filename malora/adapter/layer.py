"""A linear layer with an adapter: it keeps the wrapped layer and adds to its output."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from malora.adapter.balance import Routing
from malora.adapter.config import MaloraConfig
from malora.adapter.core import Experts, mixture, start, without_autocast

CANNOT_MERGE = (
    "a routed adapter cannot be merged into the weights: which experts are used depends on each token. "
    "malora.export_lora(model, folder) writes a plain LoRA with fixed gates, which stock PEFT loads and merges."
)


class MaloraLayer(BaseTunerLayer):
    """Tensors by adapter name: ``malora_A`` (d, n), ``malora_P`` (N, r_bar, d), ``malora_B`` (N, m, r_bar),
    ``malora_router`` (N, n) or (N, d); a variant without P or router has no entry there."""

    adapter_layer_names = ("malora_A", "malora_P", "malora_B", "malora_router")
    other_param_names = ("configs",)

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        self.base_layer = base_layer
        self.name = name
        self.in_features, self.out_features = _linear_shape(base_layer, name)
        self.malora_A = nn.ParameterDict()
        self.malora_P = nn.ParameterDict()
        self.malora_B = nn.ParameterDict()
        self.malora_router = nn.ParameterDict()
        self.configs: dict[str, MaloraConfig] = {}
        self.routing: Routing | None = None
        self.fixed_gates: Tensor | None = None  # (N): instead of the router's, for every token
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True

    def update_layer(self, adapter_name: str, config: MaloraConfig) -> None:
        """Adds an adapter under this name, at its start."""
        tensors = start(
            config.shapes(self.in_features, self.out_features),
            seed=config.init_seed,
            name=self.name,
            identity=config.init_weights,
        )
        self.configs[adapter_name] = config
        for key, tensor in tensors.items():
            getattr(self, f"malora_{key}")[adapter_name] = nn.Parameter(tensor)
        if (
            config.freeze_shared
        ):  # PEFT keeps these frozen whatever else is switched on; its default is shared, so no update in place
            self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: ("malora_A",)}
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def experts(self, adapter: str) -> Experts:
        """The tensors of one adapter."""
        A, B = self.malora_A[adapter], self.malora_B[adapter]
        P, router = self.malora_P.get(adapter), self.malora_router.get(adapter)
        return Experts(A, B, P, router, self.configs[adapter].shared_router)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise NotImplementedError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged, so there is nothing to undo."""


class MaloraLinear(nn.Module, MaloraLayer):
    """``y = W0 x + s * sum_t G_t(x) B_t P_t (A x)``, summed over the active adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MaloraConfig, name: str) -> None:
        super().__init__()
        MaloraLayer.__init__(self, base_layer, name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., n) -> (..., m), in the type of the base layer's output."""
        adapters = [name for name in self.active_adapters if name in self.malora_A]
        if self.disable_adapters or not adapters:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        plain = not args and not kwargs and self._is_plain(x, adapters[0])
        y: Any = self.base_layer if plain else self.base_layer(x, *args, **kwargs)
        for adapter in adapters:
            y = self._adapt(y, x, adapter, alone=len(adapters) == 1)
        return y  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuses tensors that cannot be this layer's adapter: PEFT itself only warns of missing ones, and lets NaN pass."""
        errors: list[str] = args[-1]
        for adapter, config in self.configs.items():
            wanted = {
                f"{prefix}malora_{key}.{adapter}": shape
                for key, shape in config.shapes(self.in_features, self.out_features).items()
            }
            found = {key: state_dict[key] for key in wanted if key in state_dict}
            what = f"{self.name} ({config.variant}, r = {config.r})"
            if found and (missing := sorted(set(wanted) - set(found))):
                errors.append(f"{what}: the file lacks {missing[0].removeprefix(prefix)}")
            for key, tensor in found.items():
                if tuple(tensor.shape) != wanted[key]:
                    errors.append(f"{what}: {key.removeprefix(prefix)} is {tuple(tensor.shape)}, expected {wanted[key]}")
                elif not tensor.is_meta and not bool(tensor.isfinite().all()):
                    errors.append(f"{what}: {key.removeprefix(prefix)} holds values that are not finite (NaN or infinite)")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _is_plain(self, x: Tensor, adapter: str) -> bool:
        """Whether the base layer may be computed together with the adapter: it is what it seems, and unobserved."""
        layer = self.base_layer
        return (
            type(layer) is nn.Linear
            and "forward" not in vars(layer)  # accelerate's offloading puts its own there
            and type(layer.weight) is nn.Parameter  # not a quantised tensor
            and not layer._forward_hooks
            and not layer._forward_pre_hooks
            and not layer._backward_hooks
            and not layer._backward_pre_hooks
            and not layer.weight.requires_grad
            and (layer.bias is None or not layer.bias.requires_grad)
            and layer.weight.dtype == x.dtype == self.malora_A[adapter].dtype
            and not _autocasts(x.device.type)
        )

    def _adapt(self, y: Tensor | nn.Linear, x: Tensor, adapter: str, *, alone: bool) -> Tensor:
        config, experts = self.configs[adapter], self.experts(adapter)
        device = x.device.type
        if experts.A.is_meta and not x.is_meta:
            raise RuntimeError(f"{self.name}: the adapter's weights were offloaded; load the model so that they stay on a device")
        if _autocasts(device):
            dtype = torch.get_autocast_dtype(device)
            x, experts = x.to(dtype), experts.to(dtype)
        else:
            x = self._cast_input_dtype(x, experts.A.dtype)  # a bfloat16 base with a float32 adapter
        with without_autocast(device):
            out, logits = mixture(x, y, experts, config.top_k, config.scaling, self.fixed_gates)  # (..., m), (..., N)
        if self.routing is not None and logits is not None:
            key = self.name if alone else f"{self.name}:{adapter}"
            self.routing.add(key, logits, config.top_k, config.router_aux_loss_coef)
        return out

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {c.variant}, N={c.num_experts}, k={c.top_k}" for name, c in self.configs.items())


def _linear_shape(layer: nn.Module, name: str) -> tuple[int, int]:
    """(n, m) of a linear layer, also of one that another adapter wraps already."""
    if isinstance(layer, BaseTunerLayer):
        layer = layer.get_base_layer()
    if not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        raise TypeError(f"target_modules: {name} is of type {kind}, and MALoRA adapts nn.Linear only; leave it out")
    return layer.in_features, layer.out_features


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
