"""MALoRA: a mixture of asymmetric low-rank adapters, as a PEFT tuner, and its training on a glotloom dataset.

Importing this package makes the adapter type known to PEFT: do so before ``PeftModel.from_pretrained``. It imports neither
PEFT nor torch itself; the type is registered as soon as both this package and PEFT are imported, in whichever order.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from malora.errors import InputError

if "torch" not in sys.modules:
    # OpenMP's workers otherwise spin at every barrier: where another process shares the cores, a training step was
    # measured 10 to 25 times slower. Must be set before torch is loaded; what the user has set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from malora.adapter.config import MaloraConfig
    from malora.adapter.export.gates import mean_gates, routing_gap
    from malora.adapter.export.lora import export_lora
    from malora.adapter.model import MaloraModel
    from malora.adapter.parameters import ParameterReport, parameter_report
    from malora.training.base_model import load_base
    from malora.training.load import load_adapter
    from malora.training.options import TrainingConfig
    from malora.training.rows_for_gates import answer_batches, gate_rows
    from malora.training.run import TrainingResult, train_adapter

__distribution__ = "glotloom"

__all__ = [
    "InputError",
    "MaloraConfig",
    "MaloraModel",
    "ParameterReport",
    "TrainingConfig",
    "TrainingResult",
    "answer_batches",
    "export_lora",
    "gate_rows",
    "load_adapter",
    "load_base",
    "mean_gates",
    "parameter_report",
    "routing_gap",
    "train_adapter",
]

_LAZY = {
    "MaloraConfig": "malora.adapter.config",
    "MaloraModel": "malora.adapter.model",
    "ParameterReport": "malora.adapter.parameters",
    "TrainingConfig": "malora.training.options",
    "TrainingResult": "malora.training.run",
    "answer_batches": "malora.training.rows_for_gates",
    "export_lora": "malora.adapter.export.lora",
    "gate_rows": "malora.training.rows_for_gates",
    "load_adapter": "malora.training.load",
    "load_base": "malora.training.base_model",
    "mean_gates": "malora.adapter.export.gates",
    "parameter_report": "malora.adapter.parameters",
    "routing_gap": "malora.adapter.export.gates",
    "train_adapter": "malora.training.run",
}


def __getattr__(name: str) -> Any:
    """torch and transformers take seconds to import: only when they are asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterAfterPeft(importlib.abc.MetaPathFinder):
    """Finds nothing of its own: it lets the import of PEFT end with that of the tuner, which registers itself."""

    searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "peft" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)  # as the other finders have it
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, finder: _RegisterAfterPeft) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module("malora.adapter.model")


if "peft" in sys.modules:
    importlib.import_module("malora.adapter.model")
else:
    sys.meta_path.insert(0, _RegisterAfterPeft())
