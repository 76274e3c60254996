"""Dialogues out of passages: `reverse` needs no model, `grounded` asks a teacher, `gates` decide what of it may stay."""

from pipeline.dialogues.steps import dialogue_steps

__all__ = ["dialogue_steps"]
