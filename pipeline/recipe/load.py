"""TOML into recipes and back: unknown keys and contradictions are told at once, by file and key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.recipe.contradictions import contradictions
from pipeline.recipe.schema import Agnostic, Clean, Dialogues, Engine, Knowledge, Recipe, Teacher

_RECIPE = TypeAdapter(Recipe)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `KEY=VALUE` overrides (`teachers.main.base_url=http://…`); InputError names file and key."""
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return parse_recipe(table, name=str(path), folder=path.parent)


def parse_recipe(table: Mapping[str, Any], *, name: str = "recipe", folder: Path = Path()) -> Recipe:
    """A recipe out of plain tables and values; `name` stands in its errors."""
    if "folder" in table:
        raise InputError(f"{name}: folder: unknown key")
    try:
        # As JSON: there a strict dataclass takes a table and a tuple an array, and nothing else is coerced.
        recipe = _RECIPE.validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        raise InputError("; ".join(dict.fromkeys(f"{name}: {_explain(e)}" for e in error.errors()[:3]))) from error
    recipe = replace(recipe, folder=folder)
    for problem in contradictions(recipe):
        raise InputError(f"{name}: {problem}")
    return recipe


_DRIVING = (
    "base_url",
    "api_key_env",
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "prompt_price",
    "completion_price",
    "budget",
    "timeout_s",
)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it goes into the manifest: every key that decides rows, defaults included, and nothing of this machine.

    Of paths the last name stays; where a teacher is and how it is driven is left out.
    """
    table: dict[str, Any] = _RECIPE.dump_python(recipe, mode="json", exclude={"folder", "engine"})
    for source in (*table["knowledge"].values(), *table["agnostic"].values()):
        source["path"] = _last_name(source["path"])
    for source in table["knowledge"].values():
        source["tokenizer"] = _last_name(source["tokenizer"])
    for teacher in table["teachers"].values():
        teacher["model"] = _last_name(teacher["model"]) if teacher["kind"] == "local" else teacher["model"]
        for key in _DRIVING:
            del teacher[key]
    table["clean"] |= {key: [_last_name(path) for path in table["clean"][key]] for key in ("evaluation_sets", "rules")}
    if Path(table["training"].get("base_model", "")).is_absolute():
        table["training"]["base_model"] = _last_name(table["training"]["base_model"])
    return table


def _last_name(path: str) -> str:
    return path if path.startswith(("sample:", "hub:")) else Path(path).name


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected KEY=VALUE, such as teachers.main.max_concurrency=8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for depth, parent in enumerate(parents, 1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {'.'.join(parents[:depth])} is a list or a value, not a table")
    table[last] = value


_MODELS: Mapping[str, type] = {
    "knowledge": Knowledge,
    "dialogues": Dialogues,
    "teachers": Teacher,
    "agnostic": Agnostic,
    "clean": Clean,
    "engine": Engine,
}


def _explain(error: Any) -> str:
    location = [part for part in error["loc"] if not str(part).startswith(("function-", "literal["))]
    key = ".".join(str(part) for part in location) or "recipe"
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        model = _MODELS.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
        known = sorted(field.name for field in fields(model) if field.name != "folder")
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}")
    if error["type"] in {"missing", "missing_argument"}:
        return f"{key}: is missing"
    message = error["msg"].replace("Input should", "should")
    if location[-1] == "constrained-str" or str(location[-1]).startswith("tuple["):  # a branch of a union
        return (
            f"{key.rpartition('.' + str(location[-1]))[0]} = {error['input']!r}: should be an address, http://…, or a list of them"
        )
    if location[-1] == "api_key_env":  # it may be the key itself, which is never shown
        return f"{key}: should be the name of an environment variable, never the key itself"
    return f"{key} = {error['input']!r}: {message}"
