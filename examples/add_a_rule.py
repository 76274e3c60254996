"""Add a rule of your own: a function in a file beside the recipe, which says why a row should be left out.

    python examples/add_a_rule.py [FOLDER]

Here: no answer to a child may be long, or hold a link. An edited rule is applied anew by the next build; the rest is re-used.
"""

import sys
import tempfile
from pathlib import Path

from pipeline import build, explain, load_recipe

RULES = '''
import re

def answers_suit_children(sample):
    """`(reason, detail)` of what is wrong with a row, or None when it may stay."""
    for message in sample.messages:
        if message.role == "assistant" and len(message.content) > 400:
            return "answer_too_long_for_children", f"{len(message.content)} characters"
        if message.role == "assistant" and (link := re.search(r"https?://\\S+", message.content)):
            return "answer_has_a_link", link[0]
    return None
'''
RECIPE = """
name = "for-children"
languages = ["es"]

[knowledge.es]
kind = "wikipedia-dump"
path = "sample:knowledge/eswiki-sample.xml.bz2"      # ships with glotloom
min_tokens = 100
licence = "CC0 1.0"

[[dialogues.es]]
mode = "reverse"

[clean]
rules = ["my_rules.py:answers_suit_children"]
"""

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
(folder / "my_rules.py").write_text(RULES, "utf-8")
(folder / "for-children.toml").write_text(RECIPE, "utf-8")

dataset = build(load_recipe(folder / "for-children.toml"), folder / "dataset")
left_out = dataset.query("SELECT id, detail FROM dropped WHERE reason = 'answer_too_long_for_children' ORDER BY id")
print(f"{dataset.path}: {dataset.count('train') + dataset.count('validation')} rows stay, {len(left_out)} are too long")
print(explain(dataset, left_out[0][0]))
