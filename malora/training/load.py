"""Loads a trained adapter, refusing what is not one in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from malora.adapter.registry import MALORA, SAVED_AS
from malora.errors import InputError
from malora.training.base_model import load_base


def read_adapter_config(path: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a MALoRA adapter's folder."""
    file = path / "adapter_config.json"
    if not file.is_file():
        raise InputError(f"{path}: not an adapter: it has no adapter_config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in (MALORA, SAVED_AS):
        raise InputError(f"{path}: not a MALoRA adapter: its peft_type is {kind!r}")
    if not (path / "adapter_model.safetensors").is_file():
        raise InputError(f"{path}: the adapter is not finished: it has no adapter_model.safetensors")
    return dict(config)


def load_adapter(path: Path | str, base_model: str | None = None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base model with the adapter at ``path``, and the tokenizer, ready to generate.

    The base is the one named in the adapter's ``training.json`` unless ``base_model`` names another place for it.
    """
    path = Path(path)
    config = read_adapter_config(path)
    base_model = base_model or _base_of(path, config)
    model, tokenizer = load_base(base_model)
    try:
        adapted = PeftModel.from_pretrained(model, str(path))
    except SafetensorError as error:
        raise InputError(f"{path}: adapter_model.safetensors is damaged ({error})") from None
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # torch's first line says only that there are errors
        raise InputError(f"{path}: the adapter does not fit {base_model}: {lines[1 if len(lines) > 1 else 0]}") from None
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        saved = {key for key in file.keys() if ".malora_" in key}  # noqa: SIM118  # not a dictionary
    # without the embeddings, which PEFT would ask the hub about
    wanted = {key for key in get_peft_model_state_dict(adapted, save_embedding_layers=False) if ".malora_" in key}
    if saved != wanted:
        odd = min(saved ^ wanted)
        raise InputError(f"{path}: adapter_model.safetensors {'has' if odd in saved else 'lacks'} {odd}; save the adapter anew")
    return adapted.eval(), tokenizer


def _base_of(path: Path, config: dict[str, Any]) -> str:
    report = path / "training.json"
    try:
        name = json.loads(report.read_text(encoding="utf-8"))["base_model"]["name"] if report.is_file() else None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{report}: not the report of a training; remove it, or say which base_model to load") from None
    name = name or config.get("base_model_name_or_path")
    if not name:
        raise InputError(f"{path}: the adapter names no base model; say which base_model to load")
    return str(name)
