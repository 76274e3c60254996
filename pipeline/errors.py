"""The two ways a build ends early; the command line turns them into exit codes."""

from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave is wrong: one line naming the file, key or row, what was expected and the way out (exit code 2)."""


class WorkError(RuntimeError):
    """The work itself failed, through no fault of the input: a full disk, a teacher that went away (exit code 1)."""


def some_of(values: Iterable[str]) -> str:
    """For messages: the first five of them."""
    some = sorted(values)
    return ", ".join(repr(value)[1:-1] for value in some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
