"""What `benchmarks/cleaning.py` measures across languages: identification, parallel groups, translated evaluation items."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.decontaminate import decontaminate
from pipeline.commands.parallel import parallel
from pipeline.text.identify import BACKEND, UNDETERMINED, identify, second_backend, second_opinion

HELP_LANGUAGES = {
    "en": "C", "zh": "zh_CN", "ru": "ru", "fr": "fr", "es": "es", "de": "de",
    "pt": "pt_BR", "ca": "ca", "it": "it", "uk": "uk", "ja": "ja", "ko": "ko",
}  # fmt: skip
LENGTHS = ((15, 30), (30, 60), (60, 160))
STRINGS = 250  # of each language and length
_PARAGRAPH = "{http://projectmallard.org/1.0/}p"


# --- identification -------------------------------------------------------------------------------------------------------


def paragraphs(help_folder: Path, language: str) -> list[str]:
    """The paragraphs of GNOME's help in one language, white space squeezed, each once."""
    pages = sorted((help_folder / HELP_LANGUAGES[language] / "gnome-help").glob("*.page"))
    texts = (
        " ".join("".join(paragraph.itertext()).split())
        for page in pages
        for paragraph in ElementTree.parse(page).getroot().iter(_PARAGRAPH)
    )
    return list(dict.fromkeys(texts))


def strings(help_folder: Path, seed: int = 0) -> Iterator[tuple[str, int, str]]:
    """(language, least length, beginning of a paragraph, cut between words); what was left in English is left out."""
    english = set(paragraphs(help_folder, "en"))
    for language in HELP_LANGUAGES:
        draw = random.Random(seed)
        own = [text for text in paragraphs(help_folder, language) if language == "en" or text not in english]
        draw.shuffle(own)
        for least, most in LENGTHS:
            long_enough = (text for text in own if len(text) >= least)
            for text in itertools.islice(long_enough, STRINGS):
                cut = text[: draw.randint(least, most)]
                if len(cut) < len(text) and " " in cut[least:]:
                    cut = cut[: cut.rindex(" ")]
                yield language, least, cut


def identification(help_folder: Path) -> dict[str, Any]:
    rows = list(strings(help_folder))
    identify(rows[0][2], HELP_LANGUAGES)  # loads what it needs
    second_opinion(rows[0][2])
    started = time.process_time()
    found = [identify(text, HELP_LANGUAGES).language for _, _, text in rows]
    seconds = time.process_time() - started
    second = [second_opinion(text) for _, _, text in rows]
    agreed = [(row, own) for row, own, other in zip(rows, found, second, strict=True) if own == other]
    return {
        "backend": BACKEND,
        "second": second_backend(),
        "strings": len(rows),
        "per_core_s": round(len(rows) / seconds),
        "accuracy": _accuracy(rows, found),
        "undetermined": sum(own == UNDETERMINED for own in found),
        "second_accuracy": _accuracy(rows, second)["all"],
        "agreed": round(len(agreed) / len(rows), 3),
        "accuracy_where_agreed": round(sum(row[0] == own for row, own in agreed) / len(agreed), 3),
    }


def _accuracy(rows: Sequence[tuple[str, int, str]], found: Sequence[str]) -> dict[str, Any]:
    total, right = Counter[Any](), Counter[Any]()
    for (language, least, _), own in zip(rows, found, strict=True):
        for key in ("all", f"{least}", f"{language} {least}"):
            total[key] += 1
            right[key] += own == language
    return {key: round(right[key] / total[key], 3) for key in total}


# --- parallel groups ------------------------------------------------------------------------------------------------------


def mgsm(data: Path, languages: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"{language}{number:03d}", "language": language, "text": line.split("\t")[0], "meaning": str(number)}
        for language in languages
        for number, line in enumerate((data / "mgsm" / f"mgsm_{language}.tsv").read_text("utf-8").splitlines())
    ]


def xquad(data: Path, seed: int, drop: float, english_too: bool) -> list[dict[str, Any]]:
    """Its questions, a share of each language's taken out; a meaning is an English wording, of which five are asked twice."""
    draw = random.Random(seed)
    asked = {language: _questions(data / "xquad" / f"xquad.{language}.json") for language in ("en", "es", "ru", "zh")}
    rows = []
    for language, questions in asked.items():
        gone = set() if language == "en" and not english_too else set(draw.sample(sorted(questions), round(drop * len(questions))))
        seen: set[str] = set()
        for number, text in sorted(questions.items()):
            meaning = asked["en"][number].casefold().strip()
            if number not in gone and meaning not in seen:
                seen.add(meaning)
                rows.append({"id": f"{language}{number}", "language": language, "text": text, "meaning": meaning})
    return rows


def _questions(file: Path) -> dict[str, str]:
    paragraphs = (p for article in json.loads(file.read_text("utf-8"))["data"] for p in article["paragraphs"])
    return {question["id"]: question["question"] for paragraph in paragraphs for question in paragraph["qas"]}


def grouping(rows: list[dict[str, Any]], work: Path, cache: Path) -> dict[str, Any]:
    """Precision and recall over all pairs of rows that `glotloom parallel` puts together, and for each pair of languages."""
    file, out = work / "rows.parquet", work / "groups.parquet"
    pq.write_table(pa.table({key: [row[key] for row in rows] for key in ("id", "language", "text")}), file)
    parallel(file, "text", out, workers=2, cache=cache)
    by_id = {row["id"]: row for row in rows}
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in pq.read_table(out).to_pylist():
        groups.setdefault(found["group_id"], []).append(by_id[found["id"]])
    meanings: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        meanings.setdefault(row["meaning"], []).append(row)
    claimed, there, right = Counter[str](), Counter[str](), Counter[str]()
    for members in groups.values():
        for one, other in itertools.combinations(members, 2):
            for key in ("all", _languages(one, other)):
                claimed[key] += 1
                right[key] += one["meaning"] == other["meaning"]
    for members in meanings.values():
        for one, other in itertools.combinations(members, 2):
            for key in ("all", _languages(one, other)):
                there[key] += 1
    return {key: [round(right[key] / max(1, claimed[key]), 3), round(right[key] / there[key], 3)] for key in sorted(there)}


def _languages(one: dict[str, Any], other: dict[str, Any]) -> str:
    return "-".join(sorted((one["language"], other["language"])))


def parallel_groups(data: Path, cache: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        return {
            "mgsm": grouping(mgsm(data, ("en", "de", "es", "fr", "ru", "zh")), work, cache),
            "xquad": [grouping(xquad(data, seed, 0.4, english_too=False), work, cache) for seed in range(3)],
            "xquad_english_too": [grouping(xquad(data, seed, 0.4, english_too=True), work, cache) for seed in range(3)],
        }


# --- translated evaluation items ------------------------------------------------------------------------------------------


def translated_items(data: Path, background: Sequence[str], cache: Path) -> dict[str, Any]:
    """MGSM in Chinese and Russian among other rows, while only the English set is given."""
    tested = [json.loads(line) for line in (data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()]
    of_the_test = "\n".join(f"{row['question']} {row['answer']}" for row in tested)  # MGSM's items, in English
    rows = [{"id": f"bg{n:06d}", "text": text} for n, text in enumerate(background) if text not in of_the_test]
    planted = [{"id": row["id"], "text": row["text"]} for row in mgsm(data, ("zh", "ru"))]
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "rows.parquet", Path(folder) / "out.parquet"
        pq.write_table(pa.Table.from_pylist([*rows, *planted]), file)
        started = time.perf_counter()
        decontaminate(file, "text", out, [data / "mgsm" / "mgsm_en.tsv"], translations=True, workers=2, cache=cache)
        seconds = time.perf_counter() - started
        left = pq.read_table(out.with_name("out.dropped.parquet")).to_pylist()
    right = [
        row for row in left if row["id"][:2] in ("zh", "ru") and int(row["id"][2:]) + 1 == int(row["partner_id"].split(":")[1])
    ]
    return {
        "rows": len(rows),
        "planted": len(planted),
        "found": len(right),
        "false": sum(row["id"].startswith("bg") for row in left),
        "wall_s": round(seconds),
    }


def report(results: dict[str, Any]) -> list[str]:
    lines = []
    if found := results.get("identification"):
        accuracy = found["accuracy"]
        lines += [
            "",
            f"| {found['backend']} | " + " | ".join(f"{a} to {b} characters" for a, b in LENGTHS) + " |",
            "|---|---:|---:|---:|",
        ]
        for language in HELP_LANGUAGES:
            lines.append(f"| {language} | " + " | ".join(f"{accuracy[f'{language} {least}']:.3f}" for least, _ in LENGTHS) + " |")
        lines.append("| all | " + " | ".join(f"{accuracy[str(least)]:.3f}" for least, _ in LENGTHS) + " |")
        lines += [
            "",
            f"All {found['strings']:,} strings: accuracy {accuracy['all']:.3f}, {found['per_core_s']:,} texts/s/core. "
            f"{found['second']} alone {found['second_accuracy']:.3f}; both agree on {found['agreed']:.1%}, and are right in "
            f"{found['accuracy_where_agreed']:.1%} of these.",
        ]
    if found := results.get("parallel"):
        worst = [min((pair[i], key) for key, pair in found["mgsm"].items() if key != "all") for i in (0, 1)]
        lines += [
            "",
            "| rows | precision | recall |",
            "|---|---:|---:|",
            f"| MGSM, six languages (worst pairs: {worst[0][1]}, {worst[1][1]}) | {found['mgsm']['all'][0]:.3f} "
            f"({worst[0][0]:.3f}) | {found['mgsm']['all'][1]:.3f} ({worst[1][0]:.3f}) |",
        ]
        for name, key in (
            ("two in five translations missing", "xquad"),
            ("two in five of English missing too", "xquad_english_too"),
        ):
            columns = [" / ".join(f"{run['all'][i]:.3f}" for run in found[key]) for i in (0, 1)]
            lines.append(f"| XQuAD questions, {name} (3 draws) | {columns[0]} | {columns[1]} |")
    if found := results.get("translated_items"):
        lines += [
            "",
            f"Of {found['planted']} translated items among {found['rows']:,} other rows {found['found']} were found, and "
            f"{found['false']} rows left for nothing; {found['wall_s']} s on two cores, embeddings included.",
        ]
    return lines
