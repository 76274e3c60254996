"""Language-agnostic rows: pools that are read, screened, checked against their originals and pruned to a budget."""

from pipeline.pools.prune import prune_step
from pipeline.pools.steps import pool_steps

__all__ = ["pool_steps", "prune_step"]
