"""Rows: the types that every step speaks, anybody's Parquet and JSONL as rows, and sorted writing."""
