"""MALoRA: a mixture of asymmetric low-rank adapters, as a PEFT tuner, and its training on a glotloom dataset.

Importing this package makes the adapter type known to PEFT: do so before ``PeftModel.from_pretrained``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if "torch" not in sys.modules:
    # OpenMP's workers otherwise spin at every barrier: where another process shares the cores, a training step was
    # measured 10 to 25 times slower. Must be set before torch is loaded; what the user has set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from malora.adapter.config import MaloraConfig
from malora.adapter.model import MaloraModel
from malora.adapter.parameters import ParameterReport, parameter_report
from malora.errors import InputError
from malora.training.options import TrainingConfig

if TYPE_CHECKING:
    from malora.adapter.export.gates import mean_gates, routing_gap
    from malora.adapter.export.lora import export_lora
    from malora.training.base_model import load_base
    from malora.training.load import load_adapter
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
    "TrainingResult": "malora.training.run",
    "answer_batches": "malora.training.rows_for_gates",
    "export_lora": "malora.adapter.export.lora",
    "gate_rows": "malora.training.rows_for_gates",
    "load_adapter": "malora.training.load",
    "load_base": "malora.training.base_model",
    "mean_gates": "malora.adapter.export.gates",
    "routing_gap": "malora.adapter.export.gates",
    "train_adapter": "malora.training.run",
}


def __getattr__(name: str) -> Any:
    """transformers' Trainer takes seconds to import: only when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
