"""Build a multilingual fine-tuning dataset: knowledge and pools in, Parquet with lineage out.

`recipe` says what is wanted, `build` turns it into a plan of steps, `engine` runs each of them once, here, in processes or on
Ray; `knowledge` reads passages, `dialogues` and `pools` make rows, `clean` decides what is dropped and why, `release` writes the
folder that `datasets.load_dataset` reads.
"""

from pipeline.build import build, plan
from pipeline.engine.executors import ExecutorOptions
from pipeline.errors import InputError, WorkError
from pipeline.recipe import Recipe, load_recipe
from pipeline.release import DatasetFolder, explain, export, open_dataset
from pipeline.rows.sample import Message, Passage, Sample, Section, Source

__distribution__ = "glotloom"
__version__ = "0.1.0"

__all__ = [
    "DatasetFolder",
    "ExecutorOptions",
    "InputError",
    "Message",
    "Passage",
    "Recipe",
    "Sample",
    "Section",
    "Source",
    "WorkError",
    "build",
    "explain",
    "export",
    "load_recipe",
    "open_dataset",
    "plan",
]
