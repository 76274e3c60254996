"""What a teacher's endpoint does wrong, sorted by what helps: asking again, or nothing."""

from __future__ import annotations

from pipeline.errors import WorkError
from pipeline.teacher.pace import Outcome


class TeacherError(WorkError):
    """One request that stays unanswered. Nothing of it is in the ledger, so the next run asks again.

    `status` is the last HTTP status, 0 when no response came.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BudgetError(WorkError):
    """What the recipe allows to be spent is spent; what is under way is still finished and kept."""


class PassingError(Exception):
    """A failed attempt that may well succeed when repeated; never leaves this package.

    `tries` is the number of faults of this kind that a request is given up at, `wait_s` what `Retry-After` asked for,
    `outcome` what it says of the server's load, `tokens` what an answer that is thrown away cost, of prompt and completion.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        tries: int,
        wait_s: float = 0.0,
        outcome: Outcome = "answered",
        tokens: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.tries = tries
        self.wait_s = wait_s
        self.outcome = outcome
        self.tokens = tokens
