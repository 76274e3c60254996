"""Many Parquet files sorted into others: rows are scattered over the disk by the shard they belong to, then each shard is sorted.

Memory: one shard at a time, in each process that sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import AtomicFile
from pipeline.text.tokens import estimate_all_tokens

ROWS_PER_SHARD = 100_000
_ROWS_PER_GROUP = 10_000
_ROWS_AT_ONCE = 10_000

I64 = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Spread(Protocol):
    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]: ...


@dataclass(frozen=True)
class Shard:
    """A file to write, sorted by some of its columns."""

    path: Path
    sort_by: tuple[str, ...]
    schema: pa.Schema


@dataclass(frozen=True)
class _Task:
    shard: Shard
    stream: Path


def write_shards(files: Sequence[Path], shard_of: I64, shards: Sequence[Shard], work: Path, spread: _Spread) -> list[int]:
    """Each row of the files to the shard with the number that `shard_of` has for it; the estimated tokens of each shard's messages.

    `work` takes all rows once, and is left empty.
    """
    streams = [work / f"{number}.arrow" for number in range(len(shards))]
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        done = 0
        for table in tables_of(files):
            own = shard_of[done : done + table.num_rows]
            order = np.argsort(own, kind="stable")
            cuts = np.flatnonzero(np.diff(own[order])) + 1
            for rows in np.split(order, cuts):
                number = int(own[rows[0]])
                if number not in writers:
                    options = pa.ipc.IpcWriteOptions(compression="lz4")
                    writers[number] = stack.enter_context(pa.ipc.new_stream(streams[number], table.schema, options=options))
                writers[number].write_table(table.take(rows))
            done += table.num_rows
    return list(spread(_write, (_Task(shard, stream) for shard, stream in zip(shards, streams, strict=True))))


def numbered(group: I64, by: Sequence[pa.ChunkedArray]) -> tuple[I64, list[int]]:
    """The shard of each row, and the group of each shard: 100,000 rows of one group that follow each other when sorted `by`.

    Shards are numbered group by group.
    """
    keys = {"group": pa.array(group)} | {str(number): column for number, column in enumerate(by)}
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys]).to_numpy()
    ordered = group[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(np.append(begins, len(ordered)))
    within = np.arange(len(ordered)) - np.repeat(begins, sizes)
    counts = -(-sizes // ROWS_PER_SHARD)
    first = np.cumsum(counts) - counts
    found = np.empty(len(group), dtype=np.int64)
    found[order] = np.repeat(first, sizes) + within // ROWS_PER_SHARD
    return found, np.repeat(ordered[begins], counts).tolist()


def tables_of(files: Sequence[Path]) -> Iterator[pa.Table]:
    """All rows in order, 10,000 at the most at once."""
    for path in files:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch])


def _write(task: _Task) -> int:
    shard = task.shard
    with pa.memory_map(str(task.stream)) as file, pa.ipc.open_stream(file) as stream:
        rows = stream.read_all()
    keys = rows.select(list(shard.sort_by))
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in shard.sort_by])
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    tokens = 0
    with AtomicFile(shard.path) as temporary, pq.ParquetWriter(temporary, shard.schema, compression="zstd") as writer:
        for begin in range(0, rows.num_rows, _ROWS_PER_GROUP):
            group = rows.take(order.slice(begin, _ROWS_PER_GROUP)).select(shard.schema.names).cast(shard.schema)
            writer.write_table(group, row_group_size=_ROWS_PER_GROUP)
            for chunk in group.column("messages").chunks:
                tokens += int(estimate_all_tokens(chunk.flatten().field("content")).sum())
    task.stream.unlink()
    return tokens
