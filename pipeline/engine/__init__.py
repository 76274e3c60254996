"""What runs a build: steps that only describe, parts on the disk, and executors that run a plan here, in processes or on Ray.

Nothing here knows what a step does; rooms above write steps, and `pipeline.build` puts them together.
"""
