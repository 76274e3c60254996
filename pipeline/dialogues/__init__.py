"""Dialogues out of passages: `reverse` needs no model, `grounded` asks a teacher, `gates` decide what of it may stay."""

from pipeline.dialogues.stages import dialogue_stages

__all__ = ["dialogue_stages"]
