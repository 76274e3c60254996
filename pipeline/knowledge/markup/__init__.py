"""Wikitext to sections of clean prose: markup, templates that carry words, and what is mended afterwards."""
