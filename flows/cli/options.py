"""Options that several commands have."""

import click

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, e.g. teachers.main.base_url=http://127.0.0.1:8000/v1. May be repeated.",
)
