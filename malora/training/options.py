"""The settings of a training run: what a recipe's ``[training]`` table may say."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from malora.errors import InputError

if TYPE_CHECKING:
    from malora.adapter.config import MaloraConfig

ADAPTER_KEYS = (
    "r", "lora_alpha", "use_rslora", "variant", "num_experts", "top_k", "expert_rank", "shared_rank",
    "shared_router", "freeze_shared", "router_aux_loss_coef",
)  # fmt: skip
MIXTURE_KEYS = ("num_experts", "top_k", "expert_rank", "shared_rank", "shared_router", "freeze_shared")  # a plain LoRA has none


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of :func:`malora.train_adapter`; checked when built, so that a wrong one fails at once."""

    base_model: str = "smollm2"  # a folder, a hub name, or "smollm2" (from the installed package)
    target_modules: str | tuple[str, ...] = "all-linear"  # linear layers to adapt, by name
    r: int = 8  # rank of the LoRA that the adapter is compared with
    lora_alpha: float = 16  # the update is scaled by lora_alpha / expert_rank
    use_rslora: bool = False  # ... or by lora_alpha / sqrt(expert_rank)
    variant: Literal["malora", "moe_lora", "hydra", "lora"] = "malora"  # or a baseline, through the same training and report
    num_experts: int | None = None  # None: 8 (1 for lora)
    top_k: int | None = None  # experts per token; None: 2 (all of them for hydra, one for lora)
    expert_rank: int | None = None  # rank of an expert's up-projection; None: r
    shared_rank: int | None = None  # rank of the shared down-projection; None: expert_rank
    shared_router: bool = False  # the router reads the shared down-projection: fewer parameters, a little faster
    freeze_shared: bool = False  # the shared down-projection stays random: fewer parameters; with shared_router less memory, too
    router_aux_loss_coef: float = 0.001  # weight of the load-balance loss; the paper's is unknown, this is usual
    learning_rate: float = 1e-3  # adapters start at zero and bear ten times a full model's rate
    warmup_ratio: float = 0.1  # of all steps, from 0 up to learning_rate; then a cosine down to 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0  # passes over the training rows, ...
    max_steps: int | None = None  # ... unless the number of optimizer steps is given
    batch_size: int = 4  # rows per forward pass and device
    gradient_accumulation: int = 2  # forward passes per optimizer step
    max_tokens: int = 1024  # a row is cut after so many tokens
    temperature: float = 2.0  # language x task: p ~ n^(1/temperature)
    seed: int = 7
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    gradient_checkpointing: bool = False  # less memory, about a third more time
    eval_rows_per_stratum: int = 64  # validation rows per language x task that are measured
    save_steps: int = 200  # optimizer steps between checkpoints
    generation_tokens: int = 64  # length of the two examples in the report; 0: none
    baseline: bool = False  # train a LoRA of equal size as well, for the report: as long again

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):  # as TOML gives it
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        self._check()
        try:
            self.adapter()
        except ValueError as error:
            raise InputError(f"training.{error}") from None

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """InputError for a key that is none, or a value that cannot be; without torch, so without the adapter's own checks."""
        known = {field.name: field.default for field in fields(cls)}
        for key in settings:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
                raise InputError(f"training.{key}: unknown key; {hint}")
        unchecked = object.__new__(cls)
        for key, value in (known | dict(settings)).items():
            object.__setattr__(unchecked, key, tuple(value) if isinstance(value, list) else value)
        unchecked._check()

    def _check(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        for key in ("batch_size", "gradient_accumulation", "save_steps"):
            self._need(key, getattr(self, key) >= 1, "at least 1")
        self._need("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1")
        self._need("max_tokens", self.max_tokens >= 8, "at least 8 tokens")
        self._need("epochs", self.epochs > 0, "more than 0")
        self._need("learning_rate", self.learning_rate > 0, "more than 0")
        self._need("temperature", self.temperature >= 1, "at least 1 (1 follows the sizes, more evens them out)")
        self._need("warmup_ratio", 0 <= self.warmup_ratio <= 1, "a share between 0 and 1")
        for key in ("weight_decay", "max_grad_norm", "seed"):
            self._need(key, getattr(self, key) >= 0, "at least 0")
        self._need("eval_rows_per_stratum", self.eval_rows_per_stratum >= 0, "at least 0")
        self._need("generation_tokens", self.generation_tokens >= 0, "at least 0")
        self._need("base_model", bool(self.base_model), 'a folder, a hub name, or "smollm2"')
        self._need("target_modules", bool(self.target_modules), '"all-linear" or names of layers')
        self._need("precision", self.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")
        self._need("baseline", not (self.baseline and self.variant == "lora"), "false for variant 'lora', which is the baseline")

    def adapter(self) -> MaloraConfig:
        """The configuration of the adapter that is trained."""
        from malora.adapter.config import MaloraConfig  # needs torch, which this module is importable without

        targets = self.target_modules
        return MaloraConfig(
            task_type="CAUSAL_LM",
            target_modules=targets if isinstance(targets, str) else list(targets),
            init_seed=self.seed,
            **{key: value for key in ADAPTER_KEYS if (value := getattr(self, key)) is not None},
        )

    def _need(self, key: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"training.{key} = {getattr(self, key)!r}: expected {expected}")


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "str | tuple[str, ...]": (str, tuple),
}


def _check_type(key: str, value: Any, annotation: str) -> None:
    kinds = _KINDS.get(annotation, (str,))
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    wrong = wrong or (isinstance(value, float) and not math.isfinite(value))
    wrong = wrong or (isinstance(value, tuple) and not all(isinstance(name, str) for name in value))
    if wrong:
        raise InputError(f"training.{key} = {value!r}: expected {annotation}")
