"""Build a multilingual fine-tuning dataset: knowledge and pools in, Parquet with lineage out.

The road, one module a step: `recipe` says what is wanted, `build` turns it into a list of stages, `stage` runs each of
them once, `knowledge` reads passages, `dialogues` and `agnostic` make samples, `clean` drops what is wrong and says why,
`dataset` writes the folder that `datasets.load_dataset` reads.
"""

from pipeline.build import build, plan
from pipeline.errors import InputError, WorkError
from pipeline.recipe import Recipe, load_recipe
from pipeline.rows.sample import Message, Passage, Sample, Section, Source

__distribution__ = "glotloom"
__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Message",
    "Passage",
    "Recipe",
    "Sample",
    "Section",
    "Source",
    "WorkError",
    "build",
    "load_recipe",
    "plan",
]
