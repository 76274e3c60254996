"""Writes docs/cli.md: what every command says of itself with --help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from flows.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def cli_docs() -> str:
    """The whole page; the same on every terminal."""
    return "\n".join(
        [
            "# The command line",
            "",
            "Made from `--help` by `make docs`; a test checks that it is current.",
            "",
            "Exit codes: 0 done, 1 failed while working, 2 the input is wrong. Errors are one line on standard error.",
            *(line for command, words in _commands(main, ("glotloom",)) for line in _section(command, words)),
            "",
        ]
    )


def _commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[click.Command, tuple[str, ...]]]:
    yield command, words
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _commands(child, (*words, name))


def _section(command: click.Command, words: tuple[str, ...]) -> list[str]:
    context = click.Context(command, info_name=" ".join(words), terminal_width=100, help_option_names=["-h", "--help"])
    return ["", f"## {' '.join(words)}", "", "```text", command.get_help(context), "```"]


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(cli_docs(), "utf-8")
