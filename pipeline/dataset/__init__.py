"""The dataset folder: published once everything is decided, read by `datasets.load_dataset` as it is."""

from pipeline.dataset.explain import explain
from pipeline.dataset.export import export
from pipeline.dataset.folder import DatasetFolder, open_dataset
from pipeline.dataset.publish import publish

__all__ = ["DatasetFolder", "explain", "export", "open_dataset", "publish"]
