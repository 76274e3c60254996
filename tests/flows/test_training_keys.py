"""A recipe's [training] table is checked when the recipe is found, by the room that knows its keys, without torch."""

import subprocess
import sys

import pytest

from flows.recipes import find_recipe
from pipeline import InputError


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.learning_rat=1.0", r"training\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("training.warmup_ratio=1.2", r"training\.warmup_ratio = 1\.2: expected a share between 0 and 1"),
        ("training.xyz=1", r"training\.xyz: unknown key; there are base_model, "),
        ("training.max_tokens=2", r"training\.max_tokens = 2: expected at least 8 tokens"),
        ("training.epochs='many'", r"training\.epochs = 'many': expected float"),
    ],
)
def test_a_key_that_is_none_and_a_value_that_cannot_be_are_refused_with_the_recipes_name(override, problem):
    with pytest.raises(InputError, match=r"ultralink_mini\.toml: " + problem):
        find_recipe("ultralink_mini", [override])


def test_to_look_for_a_recipe_imports_no_torch():
    code = "import sys; from flows.recipes import find_recipe; find_recipe('ultralink_mini'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
