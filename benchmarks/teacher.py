"""A teacher's client against a server of 256 slots whose answers take a second each: how busy it is kept, and what faults cost.

    python benchmarks/teacher.py                 # healthy and faulty, ~3 minutes
    python benchmarks/teacher.py --kills 20      # killed so many times on the way
    python benchmarks/teacher.py --peers data-designer=/venv/bin/python curator=/other/bin/python   # beside them, in the same run
    python benchmarks/teacher.py --passages 1000 100000 1000000      # memory of a build of so many, ~25 minutes
    python benchmarks/teacher.py --report        # only print what was measured

The server runs in a process of its own on loopback, like the client, and answers as vLLM does: beyond its slots requests queue,
and a client that goes away frees its slot. Answer times are log-normal (mean 1 s, sigma 0.5), drawn from the request's text, so
that every client meets the same ones. With faults one attempt in five fails, in eight ways: 429, 500, 503, a reset, junk, an
empty answer, no choices, and a hang to the timeout. The ideal client, which is simulated, sends every request and every
repetition the moment a slot is free and never waits. `by hand` is the floor: aiohttp alone, which keeps and checks nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import heapq
import itertools
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from pipeline import build
from pipeline.engine.step import StepReport
from pipeline.recipe import parse_recipe
from pipeline.rows.sample import Message
from pipeline.teacher import Ledger, TeacherClient, Usage

SLOTS = 256
REQUESTS = 10_000
CHARACTERS = 1_000
MEAN_S, SIGMA = 1.0, 0.5
FAULTS = ("429", "500", "503", "reset", "junk", "empty", "no choices", "hang")
FAULT_SHARE = 0.2
TIMEOUT_S = 10.0
PEER_TIMEOUT_S = 300.0
MIDDLE = 0.8
RESULTS = Path(__file__).parent / "results" / "teacher.json"


# --- the server ---------------------------------------------------------------------------------------------------------


def number_of(text: str) -> float:
    """In [0, 1), the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def answer_time(question: str, attempt: int, mean_s: float) -> float:
    draw = random.Random(f"{question[:40]} {attempt}")
    return mean_s * draw.lognormvariate(-(SIGMA**2) / 2, SIGMA)


def fault_of(question: str, attempt: int, share: float) -> str | None:
    drawn = number_of(f"{attempt} {question[:40]}")
    return FAULTS[int(drawn / share * len(FAULTS))] if drawn < share else None


class Server:
    """Chat completions in a number of slots; `/stats` tells how busy they were."""

    def __init__(self, mean_s: float, fault_share: float) -> None:
        self._mean_s, self._fault_share = mean_s, fault_share
        self._slots = asyncio.Semaphore(SLOTS)
        self._attempts: Counter[str] = Counter()
        self._busy: list[tuple[float, int]] = []  # when it changed, and by how much

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/reset", self.reset)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        messages = json.loads(await request.read())["messages"]
        if not messages:
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        content = messages[-1]["content"]
        question = content if isinstance(content, str) else "".join(part["text"] for part in content)
        async with self._slots:
            attempt = self._attempts[question[:40]]
            self._attempts[question[:40]] += 1
            self._busy.append((time.monotonic(), 1))
            try:
                return await self._answer(request, question, attempt)
            finally:
                self._busy.append((time.monotonic(), -1))

    async def _answer(self, request: web.Request, question: str, attempt: int) -> web.StreamResponse:
        fault = fault_of(question, attempt, self._fault_share)
        if fault == "hang":
            await asyncio.sleep(60)
        if fault in ("429", "500", "503"):
            return web.Response(status=int(fault))
        await asyncio.sleep(answer_time(question, attempt, self._mean_s))
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
        if fault == "junk":
            return web.Response(body=b'{"choices": [{"mess')
        if fault == "no choices":
            return web.json_response({"object": "chat.completion"})
        text = "" if fault == "empty" else f"The answer to {question[:40]!r}. " + "It goes on for a while. " * 8
        return web.json_response(
            {
                "id": f"chatcmpl-{attempt}",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 300, "completion_tokens": 60, "total_tokens": 360},
            }
        )

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "busy": busy_share(self._busy),
                "requests": self._attempts.total(),
                "attempts": dict(self._attempts) if "attempts" in request.query else None,
            }
        )

    async def reset(self, request: web.Request) -> web.Response:
        self._attempts.clear()
        self._busy.clear()
        return web.Response()


def busy_share(changes: Sequence[tuple[float, int]]) -> float:
    """Of the slots, in the middle of the time between the first and the last change."""
    if not changes:
        return 0.0
    begin, end = changes[0][0], changes[-1][0]
    edge = (end - begin) * (1 - MIDDLE) / 2
    begin, end = begin + edge, end - edge
    area, busy, last = 0.0, 0, begin
    for when, change in changes:
        now = min(max(when, begin), end)
        area += busy * (now - last)
        busy, last = busy + change, now
    return area / SLOTS / (end - begin)


def serve(port: Any, mean_s: float, fault_share: float) -> None:
    async def run() -> None:
        runner = web.AppRunner(Server(mean_s, fault_share).app(), access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(run())


@contextmanager
def server(mean_s: float, fault_share: float = 0.0) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, mean_s, fault_share), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


async def asked_of(url: str, what: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/{what}") as response:
        return await response.json()


# --- the client ---------------------------------------------------------------------------------------------------------


def questions(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"Question {number:06d}: " + "what is it that one would like to know of this? " * (CHARACTERS // 48)


async def ask_all(url: str, ledger_file: Path, count: int, timeout_s: float) -> Usage:
    """All questions, some more at once than there are slots, as the dialogues do."""
    ledger = Ledger(ledger_file)
    client = TeacherClient(
        name="main",
        base_urls=[f"{url}/v1"],
        model="m",
        ledger=ledger,
        parameters={"temperature": 0.0},
        max_concurrency=SLOTS,
        timeout_s=timeout_s,
    )
    left = questions(count)

    async def work() -> None:
        for question in left:
            answer = await client.ask([Message("user", question)])
            assert answer.text.startswith(f"The answer to {question[:40]!r}"), answer.text

    async with client:
        await asyncio.gather(*(work() for _ in range(SLOTS + SLOTS // 4)))
    await ledger.close()
    return client.usage


async def ask_by_hand(url: str, ledger_file: Path, count: int, timeout_s: float) -> Usage:
    left = questions(count)

    async def work(session: aiohttp.ClientSession) -> None:
        for question in left:
            body = {"model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": 512, "temperature": 0.0}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                answer = await response.json()
            assert answer["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SLOTS)) as session:
        await asyncio.gather(*(work(session) for _ in range(SLOTS)))
    return Usage(requests=count)


CLIENTS: dict[str, Callable[[str, Path, int, float], Coroutine[Any, Any, Usage]]] = {"glotloom": ask_all, "by hand": ask_by_hand}


def measure(name: str, url: str, ledger_file: Path, count: int, timeout_s: float) -> dict[str, Any]:
    """In this process, which does nothing else."""
    wall, cpu = time.perf_counter(), time.process_time()
    usage = asyncio.run(CLIENTS[name](url, ledger_file, count, timeout_s))
    seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": round(seconds, 2),
        "cpu_ms_per_request": round(1000 * cpu_s / max(1, usage.requests), 3),
        "requests": usage.requests,
        "failed": usage.failed,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def command(url: str, ledger_file: Path, count: int, name: str = "glotloom") -> list[str]:
    return [sys.executable, __file__, "--one", name, url, str(ledger_file), "--requests", str(count)]


def ideal_seconds(count: int, fault_share: float) -> float:
    """Of a client that sends whatever waits, oldest first, the moment a slot is free."""
    waiting = [(0.0, number, 0) for number in range(count)]
    texts = list(questions(count))
    slots = [0.0] * SLOTS
    end = 0.0
    while waiting:
        ready, number, attempt = heapq.heappop(waiting)
        start = max(heapq.heappop(slots), ready)
        fault = fault_of(texts[number], attempt, fault_share)
        took = answer_time(texts[number], attempt, MEAN_S)
        took = TIMEOUT_S if fault == "hang" else 0.0 if fault in ("429", "500", "503") else took
        heapq.heappush(slots, start + took)
        end = max(end, start + took)
        if fault:
            heapq.heappush(waiting, (start + took, number, attempt + 1))
    return end


def peer_command(url: str, folder: Path, count: int, python: str, name: str) -> list[str]:
    folder.mkdir()
    return [python, str(Path(__file__).with_name("teacher_peers.py")), name, url, str(folder), str(count)]


RUNS = {"healthy": ("glotloom", 0.0), "healthy, by hand": ("by hand", 0.0), "one in five fails": ("glotloom", FAULT_SHARE)}


# --- measuring ------------------------------------------------------------------------------------------------------------


def healthy_and_faulty(count: int, repeats: int, work: Path, peers: dict[str, str]) -> dict[str, Any]:
    """The clients take turns. `peers`: names with the Python of each one's environment."""
    titles = RUNS | {f"healthy, {peer}": (peer, 0.0) for peer in peers}
    titles |= {f"one in five fails, {peer}": (peer, FAULT_SHARE) for peer in peers}
    runs: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for repeat, (name, share) in itertools.product(range(repeats), titles.values()):
        file = work / f"{name}-{share}-{repeat}.sqlite"
        with server(MEAN_S, share) as url:
            if name in peers:
                run = peer_run(peer_command(url, file.with_suffix(""), count, peers[name], name), count)
            else:
                done = subprocess.run(command(url, file, count, name), stdout=subprocess.PIPE, text=True, check=True)
                run = json.loads(done.stdout) | {"good_answers": count}
            stats = asyncio.run(asked_of(url, "stats"))
            run |= {"slots_busy": stats["busy"], "requests": stats["requests"]}
        assert name != "glotloom" or len(Ledger(file)) == count  # every one answered, and kept
        runs[name, share].append(run)
        print(f"{name}, {share:.0%} of attempts fail: {run}", file=sys.stderr)
    result = {}
    for title, (name, share) in titles.items():
        ideal = ideal_seconds(count, share)
        own = [run | {"times_ideal": run["seconds"] / ideal} for run in runs[name, share]]
        result[title] = {"requests_wanted": count, "ideal_seconds": round(ideal, 2)}
        for key in ("seconds", "times_ideal", "slots_busy", "cpu_ms_per_request", "peak_mib", "requests", "good_answers"):
            result[title][key] = spread([run[key] for run in own], 4)
    return result


_OUTPUT: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": PEER_TIMEOUT_S}


def peer_run(command: list[str], count: int) -> dict[str, Any]:
    """What the peer says of its run; one that does not end within `PEER_TIMEOUT_S` has no good answers."""
    began = time.perf_counter()
    try:
        done = subprocess.run(command, check=False, **_OUTPUT)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or "\nRESULT " not in done.stdout:
        print(done.stdout[-3000:] if done else f"not done within {PEER_TIMEOUT_S} s", file=sys.stderr)
        return {"seconds": time.perf_counter() - began, "cpu_ms_per_request": 0.0, "peak_mib": 0, "good_answers": 0}
    result: dict[str, Any] = json.loads(done.stdout.rpartition("\nRESULT ")[2])
    assert result["good_answers"] <= result["answers"] <= count
    return result


def spread(values: Sequence[float], digits: int) -> list[float]:
    """Median, least, greatest."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def killed(kills: int, work: Path, count: int = 4_000, mean_s: float = 0.2) -> dict[str, Any]:
    """One run of `count` requests that is killed so many times: what was in the ledger is never asked again."""
    draw = random.Random(0)
    whole = count * mean_s / SLOTS + 1.0
    file = work / "killed.sqlite"
    asked_again = 0
    with server(mean_s) as url:
        for _ in range(kills):
            process = subprocess.Popen(command(url, file, count), stdout=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.8, 1.0 + whole / 2))
            process.kill()
            process.wait()
            kept = _kept(file)
            before = asyncio.run(asked_of(url, "stats?attempts"))["attempts"]
            time.sleep(0.5)  # what the server was still at
            after = asyncio.run(asked_of(url, "stats?attempts"))["attempts"]
            assert before.keys() <= after.keys()
            probe = subprocess.Popen(command(url, file, count), stdout=subprocess.DEVNULL)
            time.sleep(0.7)
            probe.kill()
            probe.wait()
            later = asyncio.run(asked_of(url, "stats?attempts"))["attempts"]
            asked_again += sum(later[question] > after[question] for question in kept)
        done = subprocess.run(command(url, file, count), stdout=subprocess.PIPE, text=True, check=True)
        requests = asyncio.run(asked_of(url, "stats"))["requests"]
    whole_again = work / "whole.sqlite"
    with server(mean_s) as url:
        subprocess.run(command(url, whole_again, count), stdout=subprocess.DEVNULL, check=True)
    return {
        "requests_wanted": count,
        "kills": 2 * kills,
        "requests_in_all": requests,
        "kept_and_asked_again": asked_again,
        "same_answers": _rows(file) == _rows(whole_again),
        "last_run": json.loads(done.stdout),
    }


def _rows(file: Path) -> list[Any]:
    import sqlite3

    with sqlite3.connect(file) as connection:
        return connection.execute("SELECT * FROM answer ORDER BY request_key").fetchall()


def _kept(file: Path) -> set[str]:
    """The beginnings of the questions that are answered."""
    return {row[2].split("'")[1] for row in _rows(file)} if file.exists() else set()


def look_ups(work: Path, count: int) -> dict[str, Any]:
    """Answers found in a ledger of so many."""
    file = next(work.glob("glotloom-0.0-*.sqlite"))
    ledger = Ledger(file)
    keys = [row[0] for row in _rows(file)]
    random.Random(0).shuffle(keys)
    began = time.perf_counter()
    asked = 0
    while asked < count:
        for key in keys:
            assert ledger.find(key, 512)
        asked += len(keys)
    return {"answers": len(keys), "look_ups_per_s": round(asked / (time.perf_counter() - began))}


_PAGE = (
    "Its port was built in {year}, when wool and salt went north and came back as timber. A wall of grey stone closes the old "
    "quarter, whose market opens on the first day of each month. Fishermen mend their nets below the chapel, and children learn to "
    "swim between the boats. The bridge carries a single road to the hills, where vines are grown on terraces."
)


def memory_of(counts: Sequence[int], work: Path) -> dict[str, Any]:
    """Builds of so many passages, each of which is asked for once: the server's answer is no question."""
    result = {}
    for count in counts:
        folder = work / f"{count}"
        folder.mkdir()
        with (folder / "pages.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                text = f"The town of Alpha {number} lies by the river. " + _PAGE.format(year=1000 + number % 1000)
                page = {"id": f"{number}", "url": f"http://x/{number}", "title": f"Alpha {number}", "text": text}
                file.write(json.dumps(page) + "\n")
        with server(0.02) as url:
            done = subprocess.run(
                [sys.executable, __file__, "--build", url, str(folder)], stdout=subprocess.PIPE, text=True, check=True
            )
            stats = asyncio.run(asked_of(url, "stats"))
        result[f"{count}"] = json.loads(done.stdout) | {"requests": stats["requests"]}
        print(f"{count} passages: {result[f'{count}']}", file=sys.stderr)
        shutil.rmtree(folder)
    return result


def build_of(url: str, folder: Path) -> dict[str, Any]:
    """In this process and those that it starts."""
    recipe = parse_recipe(
        {
            "name": "passages",
            "languages": ["en"],
            "knowledge": {"en": {"kind": "jsonl", "path": str(folder / "pages.jsonl"), "min_tokens": 20}},
            "teachers": {"main": {"kind": "openai", "base_url": f"{url}/v1", "model": "m", "max_concurrency": SLOTS}},
            "dialogues": {"en": [{"mode": "grounded", "teacher": "main"}, {"mode": "reverse", "count": 10}]},
        }
    )
    began = time.perf_counter()
    stages: dict[str, StepReport] = {}
    build(recipe, folder / "out", on_report=lambda report: stages.update({report.stage: report}))
    peaks = [resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mib": peaks[0],
        "peak_mib_of_a_child": peaks[1],
        "passages": stages["grounded-en"].rows_in,
        "left": stages["grounded-en"].dropped,
    }


def report(results: dict[str, Any]) -> str:
    lines = [
        f"| {SLOTS} slots, {MEAN_S:g} s an answer | requests | s | x ideal | slots busy | CPU, ms a request | MiB | good answers |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in (*RUNS, *(title for title in results if ", " in title and title not in RUNS)):
        if run := results.get(name):
            keys = ("seconds", "times_ideal", "slots_busy", "cpu_ms_per_request", "peak_mib", "good_answers")
            cells = [_cell(run[key]) for key in keys if key in run]
            if not run.get("good_answers", [1])[-1]:
                cells = [f"not done in {PEER_TIMEOUT_S:g}", "", cells[2], "", "", "0"]
            lines.append(f"| {name} | {run['requests_wanted']:,} | {' | '.join(cells)} |")
    if run := results.get("killed"):
        lines += [
            "",
            f"Killed {run['kills']} times over {run['requests_wanted']:,} requests: {run['kept_and_asked_again']} kept answers",
        ]
        lines[-1] += f" asked for again, {run['requests_in_all']:,} requests in all, the same answers: {run['same_answers']}."
    for count, run in results.get("passages", {}).items():
        lines += ["", f"A build of {int(count):,} passages: {run['peak_mib']:,} MiB at the most, {run['seconds']:,.0f} s."]
    if run := results.get("look_ups"):
        lines += ["", f"{run['look_ups_per_s']:,} answers a second are found in a ledger of {run['answers']:,}."]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    median, least, greatest = values
    return f"{median:g} ({least:g} to {greatest:g})" if least < greatest else f"{median:g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, help="kill one run so many times, and its continuation as often")
    parser.add_argument("--passages", nargs="+", type=int, help="build from so many, and see what memory it takes")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME=PYTHON", help="data-designer, curator: run beside them")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "URL", "LEDGER"), help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], given.one[1], Path(given.one[2]), given.requests, TIMEOUT_S)))
        return 0
    if given.build:
        print(json.dumps(build_of(given.build[0], Path(given.build[1]))))
        return 0
    results = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    if not given.report:
        with tempfile.TemporaryDirectory() as folder:
            if given.kills:
                results["killed"] = killed(given.kills, Path(folder))
            elif given.passages:
                results["passages"] = memory_of(given.passages, Path(folder))
            else:
                peers = dict(peer.split("=", 1) for peer in given.peers)
                results |= healthy_and_faulty(given.requests, given.repeats, Path(folder), peers)
                results["look_ups"] = look_ups(Path(folder), 200_000)
        results["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        given.out.parent.mkdir(exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(report(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
