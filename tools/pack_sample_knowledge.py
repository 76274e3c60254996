"""Pack `tools/sample_knowledge/{language}/*.wiki` into the MediaWiki XML dumps that ship with the package.

Run after changing an article: `python tools/pack_sample_knowledge.py`. A test keeps the dumps current. The pages are the
project's own, so the dumps' site is not Wikipedia's: addresses end in `.example`, a name that never resolves.
"""

from __future__ import annotations

import bz2
import re
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

SOURCES = Path(__file__).parent / "sample_knowledge"
DUMPS = Path(__file__).parents[1] / "pipeline" / "samples" / "knowledge"

# File and Category as each language's Wikipedia calls them; the Spanish one keeps its lists in a namespace of their own.
NAMESPACES = {
    "en": {6: "File", 10: "Template", 14: "Category"},
    "es": {6: "Archivo", 10: "Plantilla", 14: "Categoría", 104: "Anexo"},
    "fr": {6: "Fichier", 10: "Modèle", 14: "Catégorie"},
    "ru": {6: "Файл", 10: "Шаблон", 14: "Категория"},
    "zh": {6: "File", 10: "Template", 14: "Category"},
}
_REDIRECT = re.compile(r"^\s*#[^\[]*\[\[([^\]|#]+)")
_TIMESTAMP = "2026-11-22T00:00:00Z"


def dump(language: str) -> str:
    """The whole XML of one language's dump."""
    names = NAMESPACES[language]
    site = "".join(f'      <namespace key="{key}" case="first-letter">{name}</namespace>\n' for key, name in names.items())
    pages = "".join(_page(number, path, names) for number, path in enumerate(sorted((SOURCES / language).glob("*.wiki")), 1))
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="' + language + '">\n'
        f"  <siteinfo>\n    <sitename>glotloom sample knowledge ({language})</sitename>\n    <dbname>{language}sample</dbname>\n"
        f"    <base>https://{language}.glotloom.example/wiki/Main_Page</base>\n    <generator>glotloom</generator>\n"
        f'    <case>first-letter</case>\n    <namespaces>\n      <namespace key="0" case="first-letter" />\n{site}'
        f"    </namespaces>\n  </siteinfo>\n{pages}</mediawiki>\n"
    )


def _page(number: int, path: Path, names: dict[int, str]) -> str:
    head, _, text = path.read_text("utf-8").partition("\n\n")
    title = head.removeprefix("title:").strip()
    namespace = next((key for key, name in names.items() if title.startswith(f"{name}:")), 0)
    redirect = _REDIRECT.match(text)
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n"
        + (f"    <redirect title={quoteattr(redirect[1].strip())} />\n" if redirect else "")
        + f"    <revision>\n      <id>{1000 + number}</id>\n      <timestamp>{_TIMESTAMP}</timestamp>\n"
        "      <contributor>\n        <username>glotloom</username>\n        <id>1</id>\n      </contributor>\n"
        "      <model>wikitext</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="{len(text.encode())}" xml:space="preserve">{escape(text.strip())}</text>\n'
        "    </revision>\n  </page>\n"
    )


def main() -> None:
    DUMPS.mkdir(parents=True, exist_ok=True)
    for language in sorted(NAMESPACES):
        path = DUMPS / f"{language}wiki-sample.xml.bz2"
        path.write_bytes(bz2.compress(dump(language).encode()))
        print(path.name)


if __name__ == "__main__":
    main()
