"""A build on a Ray cluster of two nodes: what it costs beside processes, and what is lost when something of it is killed.

    python benchmarks/ray_cluster.py                           # all of it at 20,000 rows; ~10 minutes on two cores
    python benchmarks/ray_cluster.py --only cost --rows 100000 --part-rows 0 --rounds 3
    python benchmarks/ray_cluster.py --only workers node driver --kills 20 --seed 8
    python benchmarks/ray_cluster.py --report                  # only print what was measured

The nodes are two raylets of one core each on this machine's loopback, started before anything is measured. The pool is that of
build.py. `cost` builds it in turn with `--executor processes --workers 2` and on the cluster; processor time is that of the command
and of whatever runs below the nodes meanwhile.

The others build a recipe that asks a loopback teacher, too, and kill with SIGKILL, at moments drawn from the seed:

    workers   a process of Ray that is at a task, so often as `--kills` says, in as many builds as it takes
    node      the second node, workers included, once in the middle of a build
    driver    the command itself, five times, each time run again

Each build has to publish the bytes of an undisturbed one with the executor inline. A request is asked twice if its answer had been
sent and it came again; after a driver was killed an answer of the last 0.2 s before does not count, since it may not have arrived.
Results are kept in `--out` after every scenario; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build
from aiohttp import web

RESULTS = Path(__file__).parent / "results" / "ray_cluster.json"
SCENARIOS = ("cost", "workers", "node", "driver")
HOLDER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": sys.argv[1]})
second = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(second, allow_graceful=False)
    if line.strip() == "replace":
        second = cluster.add_node(num_cpus=1)
    print("done", flush=True)
cluster.shutdown()
"""
PASSAGES, SLOTS, ANSWER_S = 150, 16, 0.1
DRIVER_KILLS = 5
ARRIVING_S = 0.2
TICKS = os.sysconf("SC_CLK_TCK")


class Cluster:
    """Two nodes of one core each, on loopback."""

    def __init__(self, folder: Path) -> None:
        # Ray knows this machine by its loopback address, and listens there alone, if it is told what it takes macOS for.
        environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=folder,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        self.address = self._out.readline().strip()
        if not self.address:
            raise SystemExit("Ray did not start; is it installed?")
        time.sleep(4)  # daemons and first workers

    def tell(self, what: str) -> None:
        """`kill`: the second node is gone; `replace`: there is another."""
        print(what, file=self._in, flush=True)
        self._out.readline()

    def pids(self) -> set[int]:
        return set(build._family(self._process.pid))

    def at_work(self) -> list[int]:
        return sorted(pid for pid in self.pids() if _name(pid).startswith("ray::_"))

    def close(self) -> None:
        self._in.close()
        self._process.wait()


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


@contextlib.contextmanager
def cpu_of(cluster: Cluster) -> Iterator[list[float]]:
    """Processor seconds of the cluster meanwhile, in a list once it is over; of a process that ends up to 0.1 s are missed."""
    total: list[float] = []
    before = {pid: _cpu_s(pid) for pid in cluster.pids()}
    seen, over = dict(before), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for pid in cluster.pids():
                seen[pid] = max(seen.get(pid, 0.0), _cpu_s(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield total
    finally:
        time.sleep(0.3)
        over.set()
        thread.join()
        total.append(sum(now - before.get(pid, 0.0) for pid, now in seen.items()))


# --- the teacher ----------------------------------------------------------------------------------------------------------------


@dataclass
class Teacher:
    """Answers on loopback, the same to the same request; what it answered and when."""

    pages: dict[str, dict[str, str]]
    url: str = ""
    answered: dict[str, float] = field(default_factory=dict)
    again: list[float] = field(default_factory=list)
    """When a request had been answered that came once more."""
    requests: int = 0

    def begin(self) -> None:
        """Of another build, nothing was asked."""
        self.answered.clear()
        self.again.clear()
        self.requests = 0

    def start(self) -> None:
        ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True).start()
        ready.wait()

    async def _serve(self, ready: threading.Event) -> None:
        slots = asyncio.Semaphore(SLOTS)

        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            digest = hashlib.sha256(body).hexdigest()
            self.requests += 1
            if digest in self.answered:
                self.again.append(self.answered[digest])
            async with slots:
                await asyncio.sleep(ANSWER_S)
            message = {"role": "assistant", "content": build.reply(json.loads(body)["messages"], self.pages)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            response = web.json_response({"choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 30}})
            await response.prepare(request)
            await response.write_eof()
            self.answered[digest] = time.monotonic()
            return response

        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await asyncio.Event().wait()


def write_recipe(folder: Path, rows: int, seed: int) -> tuple[Path, Teacher]:
    """The pool of build.py, and dialogues about towns."""
    pool = build.write_pool(folder / "pool", rows, layout="parquet", seed=seed, data=None)
    recipe = build.write_recipe(folder, pool, rows)
    pages = {town: build.facts_of("en", town) for town in build.towns("en", PASSAGES)}
    with (folder / "en.jsonl").open("w", encoding="utf-8") as file:
        for town, facts in pages.items():
            page = {"id": town, "url": f"http://x/{town}", "title": town, "text": "\n\n".join(facts.values())}
            file.write(json.dumps(page) + "\n")
    teacher = Teacher(pages)
    teacher.start()
    lines = ["[knowledge.en]", 'kind = "jsonl"', f'path = "{folder / "en.jsonl"}"', "min_tokens = 50"]
    lines += ["[[dialogues.en]]", 'mode = "grounded"', 'teacher = "main"']
    lines += ["[teachers.main]", 'kind = "openai"', f'base_url = "{teacher.url}"', 'model = "m"', f"max_concurrency = {SLOTS}"]
    with_teacher = folder / "with_teacher.toml"
    with_teacher.write_text(recipe.read_text("utf-8") + "\n" + "\n".join(lines) + "\n", "utf-8")
    return with_teacher, teacher


# --- the scenarios --------------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all scenarios share."""

    cluster: Cluster
    recipe: Path
    teacher: Teacher
    folder: Path
    part_rows: int
    draw: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    longest_s: float = 0.0

    def command(self, out: Path, executor: str = "ray") -> list[str]:
        address = self.cluster.address if executor == "ray" else ""
        own = build.Variant("", executor=executor, workers=2 if executor == "processes" else 0, ray_address=address)
        return build.replace(own, part_rows=self.part_rows).command(self.recipe, out)

    def fresh(self) -> Path:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        self.teacher.begin()
        return self.folder / "out"

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        with (self.folder / "command.log").open("w") as log:
            return subprocess.Popen(
                self.command(out), env=build.Variant("").environment(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait():
            raise SystemExit((self.folder / "command.log").read_text()[-3000:])

    def differing(self, out: Path) -> int:
        """Published files that are not those of the undisturbed build."""
        return len({file for file, _ in set(_hashes(out).items()) ^ set(self.expected.items())})


def _hashes(out: Path) -> dict[str, str]:
    return {str(file.relative_to(out)): build._hash(file) for file in build.published(out)}


def cost(bench: Bench, rounds: int) -> dict[str, Any]:
    measured: dict[str, list[dict[str, float]]] = {"processes": [], "ray": []}
    for _ in range(rounds):
        for executor, own in measured.items():
            out = bench.fresh()
            with cpu_of(bench.cluster) as of_cluster:
                told = build.run(bench.command(out, executor), build.Variant("").environment(), bench.folder)
            own.append({"wall_s": told["wall_s"], "cpu_s": round(told["cpu_s"] + of_cluster[0] * (executor == "ray"), 1)})
            bench.expected = bench.expected or _hashes(out)
            if differing := bench.differing(out):
                raise SystemExit(f"{executor}: {differing} files differ from those of the first build")
    return measured


def workers(bench: Bench, kills: int) -> dict[str, Any]:
    done = builds = differing = again = 0
    while done < kills:
        process = bench.start(out := bench.fresh())
        builds += 1
        due = time.monotonic() + bench.draw.uniform(1, bench.longest_s / 4)
        while process.poll() is None:
            at_work = bench.cluster.at_work()
            if done < kills and time.monotonic() >= due and at_work:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(bench.draw.choice(at_work), signal.SIGKILL)
                    done += 1
                due = time.monotonic() + bench.draw.uniform(0.5, bench.longest_s / 4)
            time.sleep(0.02)
        bench.end(process)
        differing, again = differing + bench.differing(out), again + len(bench.teacher.again)
    return {"kills": done, "builds": builds, "differing": differing, "asked_twice": again, "requests": bench.teacher.requests}


def node(bench: Bench) -> dict[str, Any]:
    process = bench.start(out := bench.fresh())
    time.sleep(bench.draw.uniform(0.3, 0.7) * bench.longest_s)
    killed_in_time = process.poll() is None
    bench.cluster.tell("kill")
    bench.end(process)
    return {
        "kills": int(killed_in_time),
        "builds": 1,
        "differing": bench.differing(out),
        "asked_twice": len(bench.teacher.again),
        "requests": bench.teacher.requests,
    }


def driver(bench: Bench) -> dict[str, Any]:
    out, killed = bench.fresh(), []
    while len(killed) < DRIVER_KILLS:
        process = bench.start(out)
        # The last moments leave enough of the work for the kills to come.
        time.sleep(bench.draw.uniform(0.1, 0.4) * bench.longest_s)
        if process.poll() is None:
            process.kill()
            killed.append(time.monotonic())
        process.wait()
        if (out / "manifest.json").exists():
            break
    process = bench.start(out)
    bench.end(process)
    may_be_lost = [when for when in bench.teacher.again if any(-1 < kill - when < ARRIVING_S for kill in killed)]
    return {
        "kills": len(killed),
        "builds": 1,
        "differing": bench.differing(out),
        "asked_twice": len(bench.teacher.again) - len(may_be_lost),
        "on_their_way": len(may_be_lost),
        "requests": bench.teacher.requests,
    }


def report(results: dict[str, Any]) -> str:
    lines = []
    for title, own in results.items():
        if "cost" in own:
            lines += [f"| {title}: cost | s | CPU s | CPU x processes |", "|---|---:|---:|---:|"]
            first = sum(run["cpu_s"] for run in own["cost"]["processes"])
            for executor, runs in own["cost"].items():
                walls, cpus = ("; ".join(f"{run[key]:.1f}" for run in runs) for key in ("wall_s", "cpu_s"))
                lines.append(f"| {executor} | {walls} | {cpus} | {sum(run['cpu_s'] for run in runs) / first:.2f} |")
            lines.append("")
        if own.keys() - {"cost"}:
            lines += [
                f"| {title}: killed | kills | builds | files that differ | requests | asked twice |",
                "|---|---:|---:|---:|---:|---:|",
            ]
            for name in SCENARIOS[1:]:
                if kept := own.get(name):
                    keys = ("kills", "builds", "differing", "requests", "asked_twice")
                    lines.append(f"| {name} | {' | '.join(f'{kept[key]:,}' for key in keys)} |")
            lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="scenarios; default: all")
    parser.add_argument("--rows", type=int, default=20_000, help="of the pool")
    parser.add_argument("--part-rows", type=int, default=500, help="engine.part_rows; 0: the default of the recipe")
    parser.add_argument("--rounds", type=int, default=2, help="of cost")
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--seed", type=int, default=7, help="of the pool and of the moments")
    parser.add_argument("--again", action="store_true", help="measure what was measured, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    results = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    own = results.setdefault(f"{given.rows:,} rows, part_rows {given.part_rows or 'default'}, seed {given.seed}", {})
    wanted = [name for name in SCENARIOS if name in given.only and (given.again or name not in own)]
    if wanted and not given.report:
        with tempfile.TemporaryDirectory(prefix="glotloom-", ignore_cleanup_errors=True) as text:
            for name in wanted:
                own[name] = run_scenario(name, given, Path(text))
                given.out.parent.mkdir(exist_ok=True)
                given.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
                print(f"{name}: {own[name]}", file=sys.stderr)
    print(report(results))
    return 0


def run_scenario(name: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """On a cluster of its own."""
    recipe, teacher = write_recipe(folder, given.rows, given.seed)
    (nodes := folder / name).mkdir()
    cluster = Cluster(nodes)
    try:
        bench = Bench(cluster, recipe, teacher, folder, given.part_rows, random.Random(f"{given.seed} {name}"))
        if name == "cost":
            return cost(build.replace(bench, recipe=folder / "recipe.toml"), given.rounds)
        build.run(bench.command(out := bench.fresh(), "inline"), build.Variant("").environment(), folder)
        bench.expected = _hashes(out)
        began = time.monotonic()
        bench.end(bench.start(out := bench.fresh()))
        bench.longest_s = time.monotonic() - began
        if differing := bench.differing(out):
            raise SystemExit(f"an undisturbed build: {differing} files differ from inline's")
        return {"workers": lambda: workers(bench, given.kills), "node": lambda: node(bench), "driver": lambda: driver(bench)}[
            name
        ]()
    finally:
        cluster.close()


if __name__ == "__main__":
    raise SystemExit(main())
