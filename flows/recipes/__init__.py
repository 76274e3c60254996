"""Recipes that ship with the package, and how a recipe is found: by path, or by the name of a shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from malora.errors import InputError as MaloraInputError
from malora.training.options import TrainingConfig
from pipeline import InputError, Recipe, load_recipe


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes in the package, sorted."""
    names = (entry.name for entry in resources.files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def find_recipe(text: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or the shipped one of that name, with `KEY=VALUE` overrides applied; its [training] is checked too."""
    path = Path(text)
    if text.removesuffix(".toml") in shipped_recipes() and not path.exists():
        path = Path(str(resources.files(__package__))) / f"{text.removesuffix('.toml')}.toml"
    elif not path.exists():
        raise InputError(f"recipe {text}: does not exist; give a TOML file or one of {', '.join(shipped_recipes())}")
    recipe = load_recipe(path, overrides)
    try:
        TrainingConfig.check(recipe.training)
    except MaloraInputError as error:
        raise InputError(f"{path}: {error}") from error
    return recipe
