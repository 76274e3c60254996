"""The configuration of a MALoRA adapter, saved as ``adapter_config.json``."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftConfig

from malora.adapter.registry import MALORA, SAVED_AS

FORMAT_VERSION = 1  # of the saved tensors and of the meaning of the fields; raised when an older reader would be wrong
Variant = Literal["malora", "moe_lora", "hydra", "lora"]


@dataclass
class MaloraConfig(PeftConfig):
    """A mixture of asymmetric low-rank adapters (MALoRA, arXiv 2410.22782) on linear layers, and its baselines.

    For a linear layer ``W0`` (m x n), ``N = num_experts``, ``d = shared_rank``, ``r_bar = expert_rank``::

        malora    y = W0 x + s * sum over the top_k experts t of  G_t(x) * B_t P_t (A x)
        moe_lora  y = W0 x + s * sum over the top_k experts t of  G_t(x) * B_t A_t x
        hydra     y = W0 x + s * sum over all experts t of        G_t(x) * B_t A x
        lora      y = W0 x + s * B A x

    with ``A`` (d x n) shared by the experts, ``P_t`` (r_bar x d), ``B_t`` (m x r_bar), ``G`` the softmax over the
    top-k logits of the router (k = 1: the full softmax's probability), and ``s = lora_alpha / r_bar``
    (``/ sqrt(r_bar)`` with ``use_rslora``). Fields left at None take the value that their help names and keep it.
    """

    r: int = field(default=8, metadata={"help": "Rank of the LoRA that this adapter is compared with; r <= r_bar."})
    lora_alpha: float = field(default=16, metadata={"help": "The scale is lora_alpha / expert_rank."})
    num_experts: int = field(
        default=None,  # type: ignore[assignment]  # never None after __post_init__, as the four below
        metadata={"help": "Experts per adapted linear layer, N; None: 8 (1 for lora)."},
    )
    top_k: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Experts that one token uses, 1 to num_experts; None: 2 (all for hydra, as published)."},
    )
    expert_rank: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "r_bar, rank of each up-projection; None: r."},
    )
    shared_rank: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "d, rank of the shared down-projection; None: expert_rank."},
    )
    variant: Variant = field(default="malora", metadata={"help": "malora, or a baseline: moe_lora, hydra, lora."})
    shared_router: bool = field(default=False, metadata={"help": "The router reads A x instead of x: N*d weights, not N*n."})
    freeze_shared: bool = field(default=False, metadata={"help": "A stays at its random start: fewer parameters to train."})
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
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Of the saved adapter; set when it is saved."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = MALORA
        self._resolve()
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, (list, tuple)):
                setattr(self, key, set(value))
        self._check()
        self._check_variant()

    def _resolve(self) -> None:
        plain = self.variant == "lora"
        if self.num_experts is None:
            self.num_experts = 1 if plain else 8
        self._need_whole("num_experts")
        if self.top_k is None:
            self.top_k = self.num_experts if self.variant == "hydra" else min(2, self.num_experts)
        if self.expert_rank is None:
            self.expert_rank = self.r
        if self.shared_rank is None:
            self.shared_rank = self.expert_rank

    def _check(self) -> None:
        self._need_whole("format_version")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version = {self.format_version!r}: this adapter was saved by a newer glotloom, and this one reads up to "
                f"{FORMAT_VERSION}; pip install --upgrade glotloom"
            )
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant = {self.variant!r}: expected one of {', '.join(get_args(Variant))}")
        for key in ("r", "expert_rank", "shared_rank", "top_k"):
            self._need_whole(key)
        for low, high in (("r", "expert_rank"), ("expert_rank", "shared_rank")):  # a B of higher rank than A gains nothing
            if getattr(self, high) < getattr(self, low):
                raise ValueError(f"{high} = {getattr(self, high)}: expected at least {low} = {getattr(self, low)}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k}: expected at most num_experts = {self.num_experts}")
        for key in ("lora_alpha", "router_aux_loss_coef"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{key} = {value!r}: expected a number of at least 0")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(f"target_modules = {self.target_modules!r}: not a regular expression ({error})") from None
        if self.bias != "none":
            raise ValueError(f"bias = {self.bias!r}: a MALoRA adapter trains no biases; leave it at 'none'")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern = {self.layers_pattern!r}: it needs layers_to_transform beside it")

    def _need_whole(self, key: str) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key} = {value!r}: expected a whole number of at least 1")

    def _check_variant(self) -> None:
        """An option that a variant has no use for is refused, not ignored."""
        if self.variant == "malora":
            return
        if self.variant == "lora" and self.num_experts != 1:
            raise ValueError(f"num_experts = {self.num_experts}: a plain lora has one; choose another variant, or leave it out")
        for key in ("expert_rank", "shared_rank"):
            if getattr(self, key) != self.r:
                raise ValueError(f"{key} = {getattr(self, key)}: variant {self.variant!r} has the one rank r = {self.r}")
        for key in ("shared_router", "freeze_shared"):
            if getattr(self, key):
                raise ValueError(f"{key} = {getattr(self, key)!r}: an option of variant 'malora', and this is {self.variant!r}")

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        """Tensor -> its shape on a linear layer of ``inputs`` (n) and ``outputs`` (m) features; what a variant lacks is absent."""
        experts, rank, down = self.num_experts, self.expert_rank, self.shared_rank
        if self.variant == "moe_lora":
            down = experts * rank  # every expert's own A, one below the other
        shapes: dict[str, tuple[int, ...]] = {"A": (down, inputs)}
        if self.variant == "malora":
            shapes["P"] = (experts, rank, down)
        shapes["B"] = (experts, outputs, rank)
        if self.variant != "lora":
            shapes["router"] = (experts, down if self.shared_router else inputs)
        return shapes

    @property
    def scaling(self) -> float:
        """``s`` of the equation."""
        return self.lora_alpha / (math.sqrt(self.expert_rank) if self.use_rslora else self.expert_rank)

    def to_dict(self) -> dict[str, Any]:
        """The configuration with sets as sorted lists, so that it is saved to the same bytes every time."""
        plain: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes ``adapter_config.json``, and into PEFT's model card (README.md), if it stands there, how to load the adapter."""
        super().save_pretrained(str(save_directory), **kwargs)
        file = Path(save_directory) / "adapter_config.json"
        saved = json.loads(file.read_text(encoding="utf-8"))
        saved["peft_type"] = SAVED_AS
        file.write_text(json.dumps(saved, indent=2, sort_keys=True), encoding="utf-8")
        _explain_loading(file.with_name("README.md"))


def _explain_loading(card: Path) -> None:
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, heading, after = text.partition("## How to Get Started with the Model")
    if heading and "import malora" not in text:
        card.write_text(before + heading + after.replace("[More Information Needed]", _HOW_TO_LOAD, 1), encoding="utf-8")


_HOW_TO_LOAD = """MALoRA is not part of PEFT: install `glotloom`, and import `malora` before loading.

```python
import malora  # makes the adapter type known to PEFT
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/of/this/folder")
```"""
