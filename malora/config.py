"""The configuration of a MALoRA adapter, saved as ``adapter_config.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from malora.registry import MALORA


@dataclass
class MaloraConfig(PeftConfig):
    """A mixture of asymmetric low-rank adapters (MALoRA, arXiv 2410.22782) on linear layers.

    For a linear layer ``W0`` (m x n), ``N = num_experts``, ``d = shared_rank``, ``r_bar = expert_rank``::

        y = W0 x + s * sum over the top_k experts t of  G_t(x) * B_t P_t (A x)

    with ``A`` (d x n) shared by the experts, ``P_t`` (r_bar x d), ``B_t`` (m x r_bar), ``G`` the softmax over the
    top-k logits of the router, and ``s = lora_alpha / r_bar`` (``/ sqrt(r_bar)`` with ``use_rslora``).
    """

    r: int = field(default=8, metadata={"help": "Rank of the LoRA that this adapter is compared with; r <= r_bar."})
    lora_alpha: float = field(default=16, metadata={"help": "The scale is lora_alpha / expert_rank."})
    num_experts: int = field(default=8, metadata={"help": "Experts per adapted linear layer, N."})
    top_k: int = field(default=2, metadata={"help": "Experts that one token uses, 1 to num_experts."})
    expert_rank: int | None = field(default=None, metadata={"help": "r_bar, rank of each up-projection; None: r."})
    shared_rank: int | None = field(default=None, metadata={"help": "d, rank of the shared down-projection; None: expert_rank."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, a regular expression, or 'all-linear'. Linear layers only."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names not to be adapted."})
    router_aux_loss_coef: float = field(default=0.001, metadata={"help": "Weight of the load-balance loss, c."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(expert_rank) instead."})
    init_weights: bool = field(
        default=True, metadata={"help": "B = 0, so the adapter starts as the identity. False: random B (for tests)."}
    )
    init_seed: int = field(default=0, metadata={"help": "Every layer's start follows from this and its name."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules, trained whole."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer numbers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    bias: str = field(default="none", metadata={"help": "Only 'none': biases of the base stay as they are."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = MALORA
        if self.expert_rank is None:
            self.expert_rank = self.r
        if self.shared_rank is None:
            self.shared_rank = self.expert_rank
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, (list, tuple)):
                setattr(self, key, set(value))
        self._check()

    def _check(self) -> None:
        for key in ("r", "expert_rank", "shared_rank", "num_experts", "top_k"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} = {value!r}: expected a whole number of at least 1")
        if not self.shared_rank >= self.expert_rank >= self.r:  # type: ignore[operator]  # both are set by now
            raise ValueError(
                f"shared_rank = {self.shared_rank}, expert_rank = {self.expert_rank}, r = {self.r}: expected "
                "shared_rank >= expert_rank >= r (a B of higher rank than A gains nothing)"
            )
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k}: expected at most num_experts = {self.num_experts}")
        for key in ("lora_alpha", "router_aux_loss_coef"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{key} = {value!r}: expected a number of at least 0")
        if self.bias != "none":
            raise ValueError(f"bias = {self.bias!r}: a MALoRA adapter trains no biases; leave it at 'none'")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern = {self.layers_pattern!r}: it needs layers_to_transform beside it")

    @property
    def scaling(self) -> float:
        """``s`` of the equation."""
        rank = self.expert_rank or self.r
        return self.lora_alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def to_dict(self) -> dict[str, Any]:
        """The configuration with sets as sorted lists, so that it is saved to the same bytes every time."""
        plain: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        super().save_pretrained(str(save_directory), **kwargs)
