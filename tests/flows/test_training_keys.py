"""The keys of a recipe's [training] table are named in two rooms that may not import each other."""

from dataclasses import fields

from malora import TrainingConfig
from pipeline.recipe import Training


def test_the_recipe_knows_exactly_the_keys_that_training_takes() -> None:
    assert {field.name for field in fields(Training)} == {field.name for field in fields(TrainingConfig)}
