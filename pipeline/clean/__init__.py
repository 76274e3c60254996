"""Cleaning: what leaves a dataset, and the reason by which it is asked for."""
