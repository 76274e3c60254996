"""Rules of one's own: `[clean] rules = ["my_rules.py:answers_have_no_links"]`, a path relative to the recipe and a function in it.

The function takes a `Sample` and returns `(reason, detail)` or None, like the built-in ones. The file's bytes are part of the
fingerprint, so an edited rule is applied anew; what the file imports is not.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.rows.sample import Sample

Place = tuple[Path, str]
"""A file and the function in it."""


def own_rules(places: Iterable[Place]) -> list[Callable[[Sample], tuple[str, str] | None]]:
    """The rules in their order, loaded from their files; InputError names what does not load."""
    places = list(places)
    modules = {path: _load(path) for path in dict.fromkeys(path for path, _ in places)}
    return [functools.partial(_ask, _function(modules[path], path, name), f"{path}:{name}") for path, name in places]


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"clean.rules: {path}: does not exist")
    spec = importlib.util.spec_from_file_location(f"glotloom-rules:{path}", path)
    assert spec is not None and spec.loader is not None, "the recipe takes .py files only"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"clean.rules: {path}: does not load: {type(error).__name__}: {error}") from error
    return vars(module)


def _function(module: dict[str, Any], path: Path, name: str) -> Callable[[Sample], Any]:
    function = module.get(name)
    if not callable(function):
        raise InputError(f"clean.rules: {path}: has no function {name!r}")
    return function  # type: ignore[no-any-return]  # what a user's function returns is checked when it is asked


def _ask(rule: Callable[[Sample], Any], name: str, sample: Sample) -> tuple[str, str] | None:
    try:
        fault = rule(sample)
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: fails on row {sample.id}: {type(error).__name__}: {error}") from error
    match fault:
        case None:
            return None
        case (str(reason), str(detail)) if reason:
            return reason, detail
    raise InputError(f"{name}: returned {fault!r} for row {sample.id}; expected (reason, detail) or None")
