"""The cleaning operators on anybody's Parquet: each reads a table, lets the operator decide, and writes rows sorted by id."""
