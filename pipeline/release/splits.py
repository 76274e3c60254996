"""Which rows are held out: whole groups, so that no document and no set of translations straddles the splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipeline.files import content_hash

VALIDATION_SHARE = 0.05


def validation_groups(rows: Iterable[tuple[str, str, str]], seed: int) -> set[str]:
    """The groups held out, from `(group_id, language, task)` of every row.

    Per language × task, groups are taken by seeded hash until 5 % of the rows, and at least one row, are held out; the last
    group of a stratum stays in training. A group counts in every stratum that it has rows in.
    """
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    groups: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, language, task in rows:
        sizes[language, task] += 1
        groups[language, task][group] += 1
    strata: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, members in groups.items():
        for group in members:
            strata[group].append(key)
    left = {key: len(members) for key, members in groups.items()}
    chosen: set[str] = set()
    # Strata with the fewest groups choose first: their choices serve the larger ones too when translations share a group.
    for key in sorted(groups, key=lambda k: (len(groups[k]), k)):
        members = groups[key]
        wanted = max(1, round(VALIDATION_SHARE * sizes[key]))
        held = sum(members[group] for group in members.keys() & chosen)
        for group in sorted(members.keys() - chosen, key=lambda g: content_hash(seed, g)):
            if held >= wanted:
                break
            if any(left[stratum] == 1 for stratum in strata[group]):
                continue
            chosen.add(group)
            held += members[group]
            for stratum in strata[group]:
                left[stratum] -= 1
    return chosen
