"""The surface: the command line, the shipped recipes, and Prefect flows over `pipeline` and `malora`."""

import pipeline

if getattr(pipeline, "__distribution__", None) != "glotloom":
    raise ImportError(
        f"`pipeline` is {pipeline.__file__}, which is not glotloom's: another package of that name comes first on the path"
    )
