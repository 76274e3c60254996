"""What the build has to know of a language: one TOML file each, `{code}.toml`, here or in the folder `GLOTLOOM_LANGUAGES` names."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Wikitext:
    """How a Wikipedia in this language marks what is not an article's prose: lower-case names; `list_titles` are patterns.

    `file`, `category` and `media` are what these namespaces are called beside the English names and those that a dump lists.
    """

    file: tuple[str, ...]
    category: tuple[str, ...]
    media: tuple[str, ...]
    apparatus: tuple[str, ...]
    disambiguation: tuple[str, ...]
    list_titles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reverse:
    """Instructions to which a native passage is the answer; slots `{title}` and `{section}`."""

    opening: tuple[str, ...]
    section: tuple[str, ...]
    follow_up: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """What a teacher is asked; slots `{title}` and `{passage}`, `{question}`, `{dialogue}`."""

    system: str
    question: str
    answer: str
    depth: str
    width: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Regular expressions (case-insensitive, `re.search`) and word lists that the gates read."""

    refers_to_source: tuple[str, ...]
    refusal: tuple[str, ...]
    dangling: tuple[str, ...]
    instructs_model: tuple[str, ...]
    function_words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language of the build; `code` is ISO 639-1."""

    code: str
    english_name: str
    name: str
    wikitext: Wikitext
    reverse: Reverse
    grounded: Grounded
    rules: Rules


def known_languages() -> tuple[str, ...]:
    """The codes for which there is a file, sorted."""
    return tuple(sorted(_files()))


def _files() -> dict[str, Traversable]:
    """By code; a file of one's own goes before the one that ships."""
    folders: list[Traversable] = [resources.files(__package__)]
    if own := os.environ.get("GLOTLOOM_LANGUAGES"):
        if not Path(own).is_dir():
            raise InputError(f"GLOTLOOM_LANGUAGES = {own}: is no folder")
        folders.append(Path(own))
    return {
        entry.name.removesuffix(".toml"): entry for folder in folders for entry in folder.iterdir() if entry.name.endswith(".toml")
    }


@functools.cache
def load_language(code: str) -> Language:
    """The language's file as a frozen value; InputError names the languages there are."""
    file = _files().get(code)
    if file is None:
        raise InputError(
            f"language {code!r} is not known; there are {', '.join(known_languages())} (one TOML file each; yours in the folder "
            "that GLOTLOOM_LANGUAGES names)"
        )
    try:
        table = tomllib.loads(file.read_text("utf-8"))
        if table["code"] != code:
            raise InputError(f"{file}: code = {table['code']!r} is not the file's name")
        language = Language(
            code=table["code"],
            english_name=table["english_name"],
            name=table["name"],
            wikitext=Wikitext(**_tuples(table["wikitext"])),
            reverse=Reverse(**_tuples(table["reverse"])),
            grounded=Grounded(**table["grounded"]),
            rules=Rules(**_tuples(table["rules"])),
        )
        for pattern in (
            *language.wikitext.list_titles,
            *language.rules.refers_to_source,
            *language.rules.refusal,
            *language.rules.dangling,
            *language.rules.instructs_model,
        ):
            re.compile(pattern)
    except KeyError as error:
        raise InputError(f"{file}: lacks {error.args[0]!r}") from error
    except (TypeError, re.error, ValueError) as error:
        raise InputError(f"{file}: {error}") from error
    return language


def _tuples(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values) for key, values in table.items()}
