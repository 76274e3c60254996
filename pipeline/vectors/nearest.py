"""Nearest neighbours among unit vectors: all of them while they are few, the nearest clusters' beyond that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]

EXACT = 30_000
"""Up to so many targets each query is compared with all."""
_CLUSTER = 1_000  # targets
_PROBES = 24
_ROUNDS = 4
_SAMPLE = 40  # targets a cluster that the centres are found from
_QUERIES = 1_024  # at once


def nearest(queries: F16, targets: F16, k: int) -> tuple[I64, F32]:
    """For each query the `k` targets (fewer if there are fewer) of the highest cosine, highest first: numbers and cosines, (n, k).

    Among more than `EXACT` targets only those of the nearest 24 clusters of about 1,000 are looked at, so that the cost grows
    little faster than the number of rows. The same vectors in the same order give the same result.
    """
    k = min(k, len(targets))
    if len(targets) <= EXACT:
        return _best(queries, targets, np.arange(len(targets)), k)
    centres = _centres(targets)
    used, own = np.unique(_assign(targets, centres, 1)[:, 0], return_inverse=True)
    centres = centres[used]  # empty ones beside a crowd of equal targets would be all that is looked at
    by_cluster = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[by_cluster], np.arange(len(centres) + 1))
    probes = _assign(queries, centres, _PROBES)
    rows, cosines = np.full((len(queries), k), -1), np.full((len(queries), k), -2, dtype=np.float32)
    asked = np.argsort(probes.ravel(), kind="stable")
    starts = np.searchsorted(probes.ravel()[asked], np.arange(len(centres) + 1))
    for cluster in range(len(centres)):
        members = by_cluster[bounds[cluster] : bounds[cluster + 1]]
        who = asked[starts[cluster] : starts[cluster + 1]] // probes.shape[1]
        if not len(members) or not len(who):
            continue
        found, near = _best(queries[who], targets[members], members, min(k, len(members)))
        _merge(rows, cosines, who, found, near)
    return rows, cosines


def cosines_of(vectors: F16, left: I64, right: I64) -> F32:
    """Of pairs of rows, each by itself: a matrix product's last digits depend on its shape."""
    found = np.empty(len(left), dtype=np.float32)
    for begin in range(0, len(left), _QUERIES):
        part = slice(begin, begin + _QUERIES)
        found[part] = np.einsum("ij,ij->i", vectors[left[part]].astype(np.float32), vectors[right[part]].astype(np.float32))
    return found


def _best(queries: F16, targets: F16, numbers: I64, k: int) -> tuple[I64, F32]:
    rows, cosines = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
    columns = np.ascontiguousarray(targets.astype(np.float32).T)
    for begin in range(0, len(queries), _QUERIES):
        part = slice(begin, begin + _QUERIES)
        all_cosines = queries[part].astype(np.float32) @ columns
        best = (
            np.argpartition(all_cosines, -k, axis=1)[:, -k:] if k < len(targets) else np.tile(np.arange(k), (len(all_cosines), 1))
        )
        values = np.take_along_axis(all_cosines, best, axis=1)
        order = np.lexsort([best, -values], axis=1)
        rows[part] = numbers[np.take_along_axis(best, order, axis=1)]
        cosines[part] = np.take_along_axis(values, order, axis=1)
    return rows, cosines


def _merge(rows: I64, cosines: F32, who: I64, found: I64, near: F32) -> None:
    k = rows.shape[1]
    all_rows = np.concatenate([rows[who], found], axis=1)
    all_cosines = np.concatenate([cosines[who], near], axis=1)
    order = np.lexsort([all_rows, -all_cosines], axis=1)[:, :k]
    rows[who] = np.take_along_axis(all_rows, order, axis=1)
    cosines[who] = np.take_along_axis(all_cosines, order, axis=1)


def _centres(vectors: F16) -> F32:
    """By k-means on the sphere over a sample."""
    count = -(-len(vectors) // _CLUSTER)
    draw = np.random.default_rng(0)
    sample = vectors[np.sort(draw.choice(len(vectors), min(len(vectors), count * _SAMPLE), replace=False))]
    centres: F32 = sample[draw.choice(len(sample), count, replace=False)].astype(np.float32)
    for _ in range(_ROUNDS):
        own = _assign(sample, centres, 1)[:, 0]
        order = np.argsort(own, kind="stable")
        used, starts = np.unique(own[order], return_index=True)
        centres[used] = np.add.reduceat(sample[order].astype(np.float32), starts, axis=0)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    return centres


def _assign(vectors: F16, centres: F32, probes: int) -> I64:
    return _best(vectors, centres.astype(np.float16), np.arange(len(centres)), min(probes, len(centres)))[0]
