"""What the build has to know of a language: one TOML file each, `pipeline/languages/{code}.toml`."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Wikitext:
    """How a Wikipedia in this language marks what is not an article's prose: lower-case names; `list_titles` are patterns."""

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
    """The codes for which a file ships, sorted."""
    names = (entry.name for entry in resources.files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


@functools.cache
def load_language(code: str) -> Language:
    """The language's file as a frozen value; InputError names the languages there are."""
    if code not in known_languages():
        raise InputError(
            f"language {code!r} is not known; there are {', '.join(known_languages())} (one TOML file each in pipeline/languages)"
        )
    table = tomllib.loads((resources.files(__package__) / f"{code}.toml").read_text("utf-8"))
    try:
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
        ):
            re.compile(pattern)
    except (KeyError, TypeError, re.error) as error:
        raise InputError(f"pipeline/languages/{code}.toml: {error}") from error
    return language


def _tuples(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values) for key, values in table.items()}
