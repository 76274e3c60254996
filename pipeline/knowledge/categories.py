"""The pages that stand below given categories of a Wikipedia, by the category links in a dump's own wikitext."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pipeline.errors import InputError
from pipeline.files import content_hash


class CategoryLinks:
    """Finds the category links of wikitext; `namespaces` are the wiki's lower-case names with their numbers.

    Links that a template sets are not in the wikitext, and not found.
    """

    def __init__(self, namespaces: Mapping[str, int]) -> None:
        names = "|".join(re.escape(name) for name, number in namespaces.items() if number == 14)
        self._link = re.compile(rf"\[\[\s*(?:{names})\s*:\s*([^\[\]|]+?)\s*(?:\||\]\])", re.IGNORECASE)

    def of(self, text: str) -> Iterator[int]:
        """The categories, as `named` has them."""
        return (named(match[1]) for match in self._link.finditer(text))


def named(title: str) -> int:
    """A category as a number, however its title is written: the first letter's case means nothing, and `_` is a space."""
    title = " ".join(title.replace("_", " ").split())
    return int(content_hash(title[:1].upper() + title[1:], digits=16), 16)


def below(roots: Iterable[str], edges: Iterable[tuple[int, int]], depth: int) -> frozenset[int]:
    """The roots and what stands at most `depth` steps below them; `edges` are category and parent. 16 bytes of memory an edge.

    InputError names a root that is neither among the categories nor among the parents.
    """
    children, parents = array("Q"), array("Q")
    for child, parent in edges:
        children.append(child)
        parents.append(parent)
    child_of, parent_of = (np.frombuffer(numbers or array("Q", [0]), dtype=np.uint64) for numbers in (children, parents))
    wanted = {named(root): root for root in roots}
    known = set(np.intersect1d(np.union1d(child_of, parent_of), np.fromiter(wanted, dtype=np.uint64)).tolist())
    if missing := [root for number, root in wanted.items() if number not in known]:
        raise InputError(f"categories: the dump has none called {missing[0]!r}")
    reached = level = np.fromiter(wanted, dtype=np.uint64)
    for _ in range(depth):
        level = np.setdiff1d(child_of[np.isin(parent_of, level)], reached)
        if not level.size:
            break
        reached = np.union1d(reached, level)
    return frozenset(reached.tolist())
