"""A Wikipedia dump into passages: how fast it is decompressed, skimmed for the draw, and parsed; on one core.

    GLOTLOOM_DATA=... python benchmarks/knowledge.py              # the excerpt in wiki/, ~1 minute
    python benchmarks/knowledge.py --dump enwiki.xml.bz2 --language en
    python benchmarks/knowledge.py --report                       # only print what was measured

Skimming is all that a page costs that is not drawn: XML, namespace, redirect, title and disambiguation. Parsing is wikitext to
clean sections. The peak of a build's memory is of the stage that draws `--documents` pages, its worker processes apart.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engine.executors import open_executor
from pipeline.engine.run import run_step
from pipeline.knowledge.dump import read_dump
from pipeline.knowledge.passages import passage_step
from pipeline.languages import load_language
from pipeline.recipe import parse_recipe

RESULTS = Path(__file__).parent / "results" / "knowledge.json"
REPEATS = 5


def rate(megabytes: float, work: Callable[[], Any]) -> list[float]:
    """Megabytes a second of processor time: median, least, greatest of `REPEATS`."""
    rates = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        rates.append(megabytes / (time.process_time() - began))
    return [round(value, 2) for value in (statistics.median(rates), min(rates), max(rates))]


def measure(dump: Path, code: str, documents: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "dump.xml"
        plain.write_bytes(bz2.decompress(dump.read_bytes()))
        size = plain.stat().st_size / 1e6
        language = load_language(code)
        pages = [page for page in read_dump(plain, language, source="", licence="") if not page.skip]
        wikitext = sum(len(page.text.encode()) for page in pages) / 1e6
        result = {
            "dump": dump.name,
            "xml_mb": round(size, 2),
            "pages_parsed": len(pages),
            "wikitext_mb": round(wikitext, 2),
            "decompressed, MB/s": rate(size, lambda: bz2.decompress(dump.read_bytes())),
            "skimmed, decompression included, MB/s": rate(size, lambda: list(read_dump(dump, language, source="", licence=""))),
            "parsed wikitext, MB/s": rate(wikitext, lambda: [page.sections() for page in pages]),
        }
        knowledge = {
            "kind": "wikipedia-dump",
            "path": str(dump),
            "max_documents": documents,
            "min_tokens": 100,
            "max_tokens": 30_000,
        }
        recipe = {"name": "k", "languages": [code], "knowledge": {code: knowledge}, "dialogues": {code: [{"mode": "reverse"}]}}
        began = time.perf_counter()
        with open_executor() as executor:
            report = run_step(passage_step(parse_recipe(recipe), code), Path(folder), executor, 20_000)
        return result | {
            "documents": report.rows_used,
            "passages": report.rows_out,
            "stage_s": round(time.perf_counter() - began, 2),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }


def report(result: dict[str, Any]) -> str:
    lines = [f"| {result['xml_mb']} MB of XML, {result['pages_parsed']} articles | MB/s/core |", "|---|---:|"]
    for key in ("decompressed, MB/s", "skimmed, decompression included, MB/s", "parsed wikitext, MB/s"):
        median, least, greatest = result[key]
        lines.append(f"| {key.removesuffix(', MB/s')} | {median:g} ({least:g} to {greatest:g}) |")
    lines += ["", f"{result['documents']} documents gave {result['passages']} passages in {result['stage_s']} s on all cores."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("GLOTLOOM_DATA")
    parser.add_argument("--dump", type=Path, default=Path(data) / "wiki" / "enwiki-sample.xml.bz2" if data else None)
    parser.add_argument("--language", default="en")
    parser.add_argument("--documents", type=int, default=1_000, help="to be drawn (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    if given.report:
        print(report(json.loads(given.out.read_text("utf-8"))))
        return 0
    if given.dump is None or not given.dump.exists():
        parser.error("no dump: name one with --dump, or the folder of data with GLOTLOOM_DATA")
    result = measure(given.dump, given.language, given.documents)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(report(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
