"""Writes an adapter as a plain LoRA: the fixed gates, what they cost, and the LoRA itself."""
