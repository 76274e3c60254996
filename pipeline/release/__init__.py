"""The dataset folder: published once everything is decided, read by `datasets.load_dataset` as it is."""

from pipeline.release.explain import explain
from pipeline.release.export import export
from pipeline.release.folder import DatasetFolder, open_dataset
from pipeline.release.publish import publish

__all__ = ["DatasetFolder", "explain", "export", "open_dataset", "publish"]
