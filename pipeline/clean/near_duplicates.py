"""Near-duplicates: candidates by one-permutation MinHash, every candidate verified by exact Jaccard, no transitive closure.

Shingles are the sets of 5 consecutive code points of the lower-cased messages, roles left out; a row shorter than that is one
shingle. A row leaves only when it is verified against a row that stays (a star around the kept row, not a chain), so
templated rows with different content stay.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.sample import SAMPLE_SCHEMA, drop, sample_from_row
from pipeline.stage import Stage, StageRun, row_count, rows_of

_SHINGLE = 5
_SLOTS = 128
_ROWS_PER_BAND = 4
# 32 bands of 4: a pair of Jaccard s becomes a candidate with 1 − (1 − s⁴)³² — .9999999 at .8, .98 at .58, .04 at .19.
_BANDS = _SLOTS // _ROWS_PER_BAND
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], dtype=np.uint64
)

Hashes = npt.NDArray[np.uint64]


def near_duplicate_stage(inputs: Stage, threshold: float) -> Stage:
    """Drop rows whose Jaccard similarity to an earlier row that stays is at least `threshold`, in (0, 1]."""
    return Stage(
        name="near-duplicates",
        version=1,
        run=functools.partial(_run, threshold=threshold),
        config={"threshold": threshold, "shingle": _SHINGLE, "slots": _SLOTS, "rows_per_band": _ROWS_PER_BAND},
        inputs=(inputs,),
        schema=SAMPLE_SCHEMA,
    )


def _run(run: StageRun, *, threshold: float) -> None:
    folder = run.inputs[0]
    total = row_count(folder)
    signatures = np.stack([signature(shingles(text)) for text in _texts(run)]) if total else np.empty((0, _SLOTS), np.uint64)
    candidates = candidate_pairs(signatures)
    involved = {row for pair in candidates for row in pair}
    sets = {row: shingles(text) for row, text in enumerate(_texts(run)) if row in involved}
    earlier: dict[int, list[int]] = {}
    for a, b in candidates:
        earlier.setdefault(b, []).append(a)
    gone: set[int] = set()
    ids: dict[int, str] = {}
    for number, row in enumerate(rows_of(folder)):
        run.progress(run.stage.name, number + 1, total)
        sample = sample_from_row(row)
        scores = [(jaccard(sets[a], sets[number]), -a) for a in earlier.get(number, ()) if a not in gone]
        score, partner = max(scores, default=(0.0, 0))
        if score >= threshold:
            gone.add(number)
            run.drop(drop(sample, "near_duplicate", partner_id=ids[-partner], detail=f"Jaccard {score:.3f}"))
        else:
            if number in involved:
                ids[number] = sample.id
            run.keep(sample)


def _texts(run: StageRun) -> Iterator[str]:
    for row in rows_of(run.inputs[0]):
        yield "\n".join(message["content"] for message in row["messages"]).lower()


def shingles(text: str) -> Hashes:
    """Sorted distinct 64-bit hashes of the text's windows of 5 code points; at least one, however short the text."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(points) < _SHINGLE:
        points = np.pad(points, (0, _SHINGLE - len(points)))
    windows = np.lib.stride_tricks.sliding_window_view(points, _SHINGLE)
    return np.unique(_mix((windows + np.uint64(1)) @ _MULTIPLIERS))


def signature(hashes: Hashes) -> Hashes:
    """One-permutation MinHash, shape (128,): the slot is the hash's top 7 bits, its minimum the value; empty slots borrow."""
    slots = np.full(_SLOTS, _EMPTY, dtype=np.uint64)
    np.minimum.at(slots, (hashes >> np.uint64(57)).astype(np.intp), hashes & np.uint64((1 << 57) - 1))
    filled = np.flatnonzero(slots != _EMPTY)
    lender = filled[np.searchsorted(filled, np.arange(_SLOTS)) % len(filled)]
    distance = (lender - np.arange(_SLOTS)) % _SLOTS
    borrowed: Hashes = slots[lender] + distance.astype(np.uint64) * _MULTIPLIERS[0]
    return borrowed


def candidate_pairs(signatures: Hashes) -> list[tuple[int, int]]:
    """Pairs (earlier row, later row) that agree in a whole band, sorted; signatures have shape (rows, 128)."""
    pairs: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        keys = _mix(signatures[:, band * _ROWS_PER_BAND : (band + 1) * _ROWS_PER_BAND] @ _MULTIPLIERS[:_ROWS_PER_BAND])
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] + np.uint64(1))) if len(order) else order
        for bucket in np.split(order, starts[1:]):
            rows = sorted(int(row) for row in bucket)
            pairs.update((a, b) for i, a in enumerate(rows) for b in rows[i + 1 :])
    return sorted(pairs)


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted sets of hashes."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _mix(values: Hashes) -> Hashes:
    """splitmix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
