"""What `benchmarks/cleaning.py` measures at scale: seconds and memory of the commands as their users run them."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
_AT_ONCE = 10_000
MIB = 1024


def write_rows(file: Path, count: int, parts: Sequence[str], parts_of_a_row: int) -> None:
    """Rows of so many random parts, a tenth of them copies of another one with a full stop more."""
    draw = random.Random(1)
    recent: list[str] = []
    with pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
        for begin in range(0, count, _AT_ONCE):
            texts = []
            for _ in range(min(_AT_ONCE, count - begin)):
                copy = recent and draw.random() < 0.1
                texts.append(draw.choice(recent) + "." if copy else " ".join(draw.choices(parts, k=parts_of_a_row)))
            recent = texts
            ids = [f"{begin + number:08d}" for number in range(len(texts))]
            writer.write_table(pa.table({"id": ids, "text": texts}, schema=_SCHEMA))


def run(*arguments: str | Path) -> dict[str, float]:
    """A command of glotloom: seconds, and the most that it and its processes had in memory, mapped files aside and with them."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = {"own_mib": 0.0, "peak_mib": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            own, resident = _memory(process.pid)
            most["own_mib"], most["peak_mib"] = max(most["own_mib"], own), max(most["peak_mib"], resident)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    return {"wall_s": round(time.perf_counter() - started, 1), **{key: round(value) for key, value in most.items()}}


def _memory(pid: int) -> tuple[float, float]:
    """MiB of a process and of all that it started."""
    own = resident = 0.0
    for member in _family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
            own += sizes.get("RssAnon", 0) / MIB
            resident += sizes.get("VmRSS", 0) / MIB
    return own, resident


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))


def memory_by_rows(originals: Sequence[str], sizes: Sequence[int], work: Path) -> dict[str, Any]:
    """`glotloom dedup` of rows of ~300 characters."""
    parts = [text[begin : begin + 50] for text in originals for begin in range(0, len(text) - 49, 50)]
    found = {}
    for count in sizes:
        file = work / "rows.parquet"
        write_rows(file, count, parts, 6)
        found[str(count)] = run("dedup", file, "--out", work / "out.parquet")
        print(f"{count:,} rows: {found[str(count)]}", file=sys.stderr)
    return found


def every_stage(originals: Sequence[str], count: int, evaluation: Path, work: Path) -> dict[str, Any]:
    """Identify, dedup and decontaminate rows of ~1 KB, each as a command on what is left; the floor reads and writes."""
    rows, identified, deduped = work / "rows.parquet", work / "identified.parquet", work / "deduped.parquet"
    write_rows(rows, count, originals, 3)
    started = time.perf_counter()
    with (
        pq.ParquetFile(rows, pre_buffer=False) as source,
        pq.ParquetWriter(work / "floor.parquet", _SCHEMA, compression="zstd") as out,
    ):
        for batch in source.iter_batches(_AT_ONCE):
            out.write_batch(batch)
    found: dict[str, Any] = {"rows": count, "bytes": rows.stat().st_size, "floor_s": round(time.perf_counter() - started, 1)}
    for name, arguments in (
        ("identify", [rows, "--languages", "en,zh,ru,fr,es", "--out", identified]),
        ("dedup", [identified, "--out", deduped]),
        ("decontaminate", [deduped, "--against", evaluation, "--out", work / "clean.parquet"]),
    ):
        found[name] = run(name, *arguments)
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def report(results: dict[str, Any]) -> list[str]:
    lines = []
    if found := results.get("every_stage"):
        stages = ("identify", "dedup", "decontaminate")
        lines += [
            "",
            f"| {found['rows']:,} rows of ~1 KB | seconds | rows/s | x floor | memory, MiB |",
            "|---|---:|---:|---:|---:|",
        ]
        lines.append(f"| reading and writing them | {found['floor_s']:.0f} | {found['rows'] / found['floor_s']:,.0f} | 1 | |")
        for name in stages:
            own = found[name]
            rate, times = found["rows"] / own["wall_s"], own["wall_s"] / found["floor_s"]
            lines.append(f"| {name} | {own['wall_s']:.0f} | {rate:,.0f} | {times:.1f} | {own['peak_mib']:,} |")
        lines.append(
            f"| all | {sum(found[name]['wall_s'] for name in stages):.0f} | | | {max(found[n]['peak_mib'] for n in stages):,} |"
        )
    if found := results.get("memory"):
        lines += [
            "",
            "| rows of ~300 characters | seconds | memory, MiB | with mapped files | bytes a row more |",
            "|---:|---:|---:|---:|---:|",
        ]
        before: tuple[int, float] | None = None
        for count, own in ((int(count), own) for count, own in found.items()):
            more = "" if before is None else f"{(own['own_mib'] - before[1]) * 2**20 / (count - before[0]):.0f}"
            lines.append(f"| {count:,} | {own['wall_s']:.0f} | {own['own_mib']:,} | {own['peak_mib']:,} | {more} |")
            before = (count, own["own_mib"])
    return lines
