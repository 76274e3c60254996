"""Other layouts of a finished dataset: a `DatasetDict` on disk, or UltraLink's own JSONL."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pipeline.errors import InputError, WorkError
from pipeline.files import AtomicFile
from pipeline.release.folder import SPLITS, DatasetFolder

FORMATS = ("hf", "ultralink")


def export(dataset: DatasetFolder, layout: str, out: Path) -> dict[str, int]:
    """Write the dataset as `hf` or `ultralink` into a folder that must be empty or absent; returns rows per file or split."""
    if layout not in FORMATS:
        raise InputError(f"export format {layout!r} is not known; there are {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; choose a new folder for the export")
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error
    try:
        temporary.chmod(0o755)
        counts = _to_hf(dataset, temporary) if layout == "hf" else _to_ultralink(dataset, temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _to_hf(dataset: DatasetFolder, out: Path) -> dict[str, int]:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files = {s: [str(p) for c in dataset.configs for p in dataset.shards(c, s)] for s in SPLITS}
    splits = {s: datasets.Dataset.from_parquet(paths, cache_dir=str(out / ".cache")) for s, paths in files.items() if paths}
    datasets.DatasetDict(splits).save_to_disk(str(out))
    shutil.rmtree(out / ".cache", ignore_errors=True)
    return {name: len(split) for name, split in splits.items()}


def _to_ultralink(dataset: DatasetFolder, out: Path) -> dict[str, int]:
    """`{language}_{task}.jsonl` with `{"id": "fr_math_12", "data": [question, answer, …]}`; both splits, train first."""
    counts: Counter[str] = Counter()
    for config in dataset.configs:
        with AtomicFile(out / f"{config}.jsonl") as path, path.open("w", encoding="utf-8") as file:
            for split in SPLITS:
                for row in dataset.rows(config, split):
                    data = [message["content"] for message in row["messages"] if message["role"] != "system"]
                    record = {"id": f"{config}_{counts[config]}", "data": data}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    counts[config] += 1
    return dict(counts)
