"""Operators that clean: each decides which rows are dropped and why, and neither reads nor writes."""
