"""Knowledge: documents of one language, read as a stream, brought to clean prose and split into passages."""

from pipeline.knowledge.passages import passage_stage

__all__ = ["passage_stage"]
