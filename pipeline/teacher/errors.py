"""What a teacher's endpoint does wrong, sorted by what helps: asking again, or nothing."""

from __future__ import annotations

from pipeline.errors import WorkError


class TeacherError(WorkError):
    """One request that stays unanswered. Nothing of it is in the ledger, so the next run asks again.

    `status` is the last HTTP status, 0 when no response came.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class PassingError(Exception):
    """A failed attempt that may well succeed when repeated; never leaves this package.

    `tries` is how often a request that meets this fault is sent in all, `wait_s` what `Retry-After` asked for.
    """

    def __init__(self, message: str, *, status: int = 0, tries: int, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.tries = tries
        self.wait_s = wait_s
