"""Build a dataset from your own texts: a JSONL file per language, with a title and a text in each line.

    python examples/build_from_jsonl.py [FOLDER]

The instructions are made from the titles and headings ("reverse" mode), so no model is needed and every answer is your text.
"""

import json
import sys
import tempfile
from pathlib import Path

from pipeline import build, explain, load_recipe

PAGES = {
    "en": {
        "Tide pool": "A tide pool is a hollow in coastal rock that keeps its sea water when the tide goes out.\n\n"
        "== Life ==\nSnails, crabs and anemones live there, and bear heat, cold and rain until the sea comes back for them.",
        "Dry stone wall": "A dry stone wall is built of stones alone: no mortar holds it, only the weight of each stone.\n\n"
        "== Building ==\nTwo faces lean towards each other, small stones fill the gap, and long ones tie the faces together.",
    },
    "fr": {
        "Four à pain": "Le four à pain du village servait à toutes les familles, qui y cuisaient chacune à leur jour.\n\n"
        "== Usage ==\nOn le chauffait avec des fagots, on retirait la braise, puis les miches cuisaient sur les pierres chaudes.",
        "Lavoir": "Le lavoir est un bassin public, alimenté par une source, où l’on rinçait le linge après la lessive.\n\n"
        "== Histoire ==\nBeaucoup de communes en ont bâti au dix-neuvième siècle, pour que l’eau des puits reste propre et saine.",
    },
}
RECIPE = """
name = "my-texts"
languages = ["en", "fr"]
knowledge.en = { kind = "jsonl", path = "en.jsonl", min_tokens = 20, licence = "CC0 1.0" }
knowledge.fr = { kind = "jsonl", path = "fr.jsonl", min_tokens = 20, licence = "CC0 1.0" }
dialogues.en = [{ mode = "reverse" }]
dialogues.fr = [{ mode = "reverse" }]
"""

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
for language, pages in PAGES.items():
    lines = [json.dumps({"title": title, "text": text}, ensure_ascii=False) for title, text in pages.items()]
    (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
(folder / "my-texts.toml").write_text(RECIPE, "utf-8")  # its paths are relative to it

dataset = build(load_recipe(folder / "my-texts.toml"), folder / "dataset")
print(f"{dataset.path}: {', '.join(dataset.configs)}")
row = next(dataset.rows("fr_chat_specific", "train"))
print(explain(dataset, row["id"]))
