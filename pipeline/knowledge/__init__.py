"""Knowledge: documents of one language, read as a stream, brought to clean prose and split into passages."""

from pipeline.knowledge.passages import passage_step

__all__ = ["passage_step"]
