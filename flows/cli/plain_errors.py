"""Errors that users can act on, as one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from pipeline import InputError, WorkError

P = ParamSpec("P")
R = TypeVar("R")


class InputFailure(click.ClickException):
    """What ends a command in one line of explanation."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: Any = None) -> None:
        click.echo(f"glotloom: {self.message}", err=True)


class WorkFailure(InputFailure):
    exit_code = 1


def plain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that users can act on into one line and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            raise InputFailure(str(error)) from error
        except WorkError as error:
            raise WorkFailure(str(error)) from error
        except KeyboardInterrupt as error:
            raise WorkFailure("interrupted; run the same command again") from error
        except Exception as error:
            if _is_malora_input_error(error):
                raise InputFailure(str(error)) from error
            if isinstance(error, OSError) and error.strerror:
                raise WorkFailure(f"{error.filename or ''}: {error.strerror}") from error
            raise

    return run


def _is_malora_input_error(error: Exception) -> bool:
    malora = sys.modules.get("malora")
    return malora is not None and isinstance(error, malora.InputError)
