"""Trains an adapter on rows with messages: its options, the rows as tokens, the run and its folder, and what it measures."""
