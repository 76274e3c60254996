"""Recipes: what users write, as frozen values.

Paths in a recipe are relative to the recipe's own folder; `sample:NAME` is a file of the sample data that ships with the
package.
"""

from pipeline.recipe.load import load_recipe, parse_recipe, recipe_to_json
from pipeline.recipe.schema import Agnostic, Clean, Dialogues, Engine, Knowledge, Recipe, Teacher

__all__ = [
    "Agnostic",
    "Clean",
    "Dialogues",
    "Engine",
    "Knowledge",
    "Recipe",
    "Teacher",
    "load_recipe",
    "parse_recipe",
    "recipe_to_json",
]
