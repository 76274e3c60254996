"""Which row is trained when: a pure function of the strata, the temperature and the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def shares(sizes: Sequence[int], temperature: float) -> NDArray[np.float64]:
    """Share of each stratum: ``p ~ n^(1/T)``. T = 1 follows the sizes, a large T makes all strata alike. (strata)"""
    weights = np.array(sizes, dtype=np.float64) ** (1.0 / temperature)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def schedule(strata: Sequence[str], *, rows: int, temperature: float, seed: int) -> list[int]:
    """The indices of the rows to train on, in order.

    ``strata[i]`` names the stratum (language and task) of row i. The j-th draw from a stratum of share p happens at the
    time ``(j + u) / p`` with u uniform in [0, 1): the order is random, yet in every prefix of length L each stratum has
    come within about one draw of ``p L``. Inside a stratum the rows come without replacement, and are shuffled anew each
    time they are used up.
    """
    members: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    names = sorted(members)
    random = np.random.Generator(np.random.PCG64(seed))
    events: list[tuple[float, int, int]] = []
    for number, (name, share) in enumerate(zip(names, shares([len(members[name]) for name in names], temperature), strict=True)):
        draws = int(np.ceil(rows * share)) + 2  # never fewer than can be wanted
        times = (np.arange(draws) + random.random(draws)) / share
        order = _cycles(members[name], draws, random)
        events += [(float(time), number, index) for time, index in zip(times, order, strict=True)]
    events.sort()
    return [index for _, _, index in events[:rows]]


def _cycles(members: list[int], draws: int, random: np.random.Generator) -> list[int]:
    """The members in random order, again and again, each cycle complete before the next."""
    order: list[int] = []
    while len(order) < draws:
        order += [members[i] for i in random.permutation(len(members))]
    return order[:draws]


def group_by_length(order: Sequence[int], lengths: Sequence[int], rows_per_step: int) -> list[int]:
    """The same rows in each optimizer step, sorted by length inside it, so that its batches waste little padding.

    ``lengths[i]`` is the length of row i in tokens; the longest come first (memory is short at once or never).
    """
    grouped: list[int] = []
    for begin in range(0, len(order), rows_per_step):
        grouped += sorted(order[begin : begin + rows_per_step], key=lambda row: (-lengths[row], row))
    return grouped
