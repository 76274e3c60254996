"""The flows: what they import and refuse by themselves, then a real Prefect server and a real worker on loopback."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
T = TypeVar("T")

RECIPE = """
name = "tiny"
languages = ["fr"]

[knowledge.fr]
kind = "wikipedia-dump"
path = "sample:knowledge/frwiki-sample.xml.bz2"
min_tokens = 100

[[dialogues.fr]]
mode = "reverse"
"""

# Stands in for a training: prints its steps, and has a child in its group that ignores a polite request to end.
ENDLESS_TRAINING = """
import json, subprocess, sys, time
from pathlib import Path

stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
Path(sys.argv[1]).write_text(str(child.pid))
for step in range(1, 6001):
    print(json.dumps({"event": "step", "phase": "train", "step": step, "total": 6000, "loss": 2.0}), flush=True)
    time.sleep(0.1)
"""


def wait_for(find: Callable[[], T | None], what: str, timeout_s: float = 60.0) -> T:
    """Ask until there is an answer that counts as true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


class Prefect:
    """A server with a database of its own, a worker on the pool `glotloom`, and what they know."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=30)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
            "HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",  # no nightly run, should it be two in the morning
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "400",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "prefect", *arguments]
            self._started.append(
                subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
            )

    def command(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        return subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)

    def ask(self, path: str, **body: Any) -> Any:
        response = self.api.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def answers(self, path: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.api.get(path).status_code == 200
        return False

    def run(self, deployment: str, name: str, **parameters: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        """`prefect deployment run … --watch`; returns what it said and the flow run."""
        given = [part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")]
        watch = ["--watch", "--watch-interval", "1", "--watch-timeout", "90"]
        process = self.command("deployment", "run", deployment, *watch, "--flow-run-name", name, *given, cwd=self.folder)
        return process, self.flow_run(name)

    def flow_run(self, name: str) -> dict[str, Any]:
        (flow_run,) = self.ask("/flow_runs/filter", flow_runs={"name": {"any_": [name]}})
        return dict(flow_run)

    def artifact(self, flow_run: dict[str, Any], key: str) -> Any:
        found = self.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}, "key": {"any_": [key]}})
        assert len(found) == 1, f"{len(found)} artifacts {key}"
        return found[0]["data"]

    def task_runs(self, flow_run: dict[str, Any]) -> list[str]:
        found = self.ask("/task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}}, sort="EXPECTED_START_TIME_ASC")
        return [task_run["name"] for task_run in found]

    def processes(self) -> list[psutil.Process]:
        """Everything that lives in this environment, whosever child it has become."""
        return [p for p in psutil.process_iter() if _environment(p).get("PREFECT_HOME") == self.environment["PREFECT_HOME"]]

    def close(self) -> list[str]:
        """End everything; returns the command lines of what outlived the worker and the server.

        Those two are Prefect's own and now and then take longer over SIGTERM than anybody should wait: they are killed then.
        """
        for process in reversed(self._started):  # the worker before its server
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        _, left = psutil.wait_procs(self.processes(), 5)
        own = {process.pid for process in self._started}
        lines = [" ".join(straggler.cmdline()) for straggler in left if straggler.is_running() and straggler.pid not in own]
        for straggler in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                straggler.kill()
        psutil.wait_procs(left, 10)
        for process in self._started:
            process.wait(10)
        self.api.close()
        return lines

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text('utf-8', 'replace')[-4000:]}" for log in sorted(self.folder.glob("*.log")))


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A server, a worker and the deployments of the repository's prefect.yaml."""
    site = Prefect(tmp_path_factory.mktemp("prefect"))
    try:
        site.start("server", "start", "--host", "127.0.0.1", "--port", str(site.port), name="server")
        wait_for(lambda: site.answers("/health"), "the server", 120)
        site.start("worker", "start", "--pool", "glotloom", "--type", "process", "--limit", "2", name="worker")
        wait_for(lambda: site.answers("/work_pools/glotloom"), "the worker's pool")
        deployed = site.command("deploy", "--all")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        yield site
    except BaseException:
        print(site.logs())
        raise
    finally:
        stragglers = site.close()
    assert stragglers == []


@pytest.fixture(scope="module")
def recipe(prefect: Prefect) -> Path:
    path = prefect.folder / "tiny.toml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture(scope="module")
def first(prefect: Prefect, recipe: Path) -> tuple[dict[str, Any], Path]:
    """The first run of the nightly build and the dataset's folder."""
    out = prefect.folder / "dataset"
    process, flow_run = prefect.run("build-dataset/nightly", "first", recipe=str(recipe), out=str(out))
    assert process.returncode == 0, process.stdout + process.stderr + prefect.logs()
    return flow_run, out


def test_the_flows_import_neither_torch_nor_transformers() -> None:
    code = "import sys, flows.build, flows.train, flows.export; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert found.stdout.strip() == "set()", found.stderr


def test_every_deployment_names_a_flow_and_parameters_that_it_takes() -> None:
    from prefect.flows import load_flow_from_entrypoint

    names = {}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        flow.validate_parameters(deployment["parameters"])
        inspect.signature(flow.fn).bind(**deployment["parameters"])
        assert ":" not in deployment["entrypoint"], "a colon makes it a file's path"
        names[f"{flow.name}/{deployment['name']}"] = [schedule["cron"] for schedule in deployment.get("schedules", [])]
    assert set(names) == {"build-dataset/nightly", "train-adapter/weekly", "export-dataset/on-demand"}
    assert names["build-dataset/nightly"] and names["train-adapter/weekly"] and not names["export-dataset/on-demand"]


def test_a_step_asks_a_teacher_again_but_never_a_user() -> None:
    from prefect.states import Failed

    from flows.build import _may_help, _task_of
    from pipeline import InputError, WorkError
    from pipeline.build import plan
    from pipeline.recipe import parse_recipe
    from pipeline.teacher import BudgetError

    dialogues = {"fr": [{"mode": "reverse", "teacher": "main"}], "en": [{"mode": "grounded", "teacher": "main"}]}
    knowledge = {"kind": "wikipedia-dump", "path": "sample:knowledge/frwiki-sample.xml.bz2"}
    recipe = {
        "name": "p",
        "languages": ["fr", "en"],
        "knowledge": dict.fromkeys(dialogues, knowledge),
        "dialogues": dialogues,
        "teachers": {"main": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}},
    }
    tasks = {step.name: _task_of(step) for step in plan(parse_recipe(recipe))}
    assert {name for name, task in tasks.items() if task.retries == 2} == {"reverse-fr", "grounded-en"}
    assert {task.retries for name, task in tasks.items() if name not in ("reverse-fr", "grounded-en")} == {0}
    for error, helps in (
        (WorkError("the teacher went away"), True),
        (InputError("no such file"), False),
        (BudgetError("spent"), False),
    ):
        assert _may_help(tasks["grounded-en"], None, Failed(data=error)) is helps  # type: ignore[arg-type]


def test_a_worker_takes_no_relative_folder_and_a_plain_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import build
    from pipeline import InputError

    assert build.place("data/mini", "out") == Path("data/mini")
    monkeypatch.setattr(build, "running_deployment", SimpleNamespace(id="a deployment"))
    assert build.place("~/mini", "out") == Path.home() / "mini"
    with pytest.raises(InputError, match=r"^out = 'data/mini': is relative"):
        build.place("data/mini", "out")


@pytest.mark.parametrize("replace", [True, False])
def test_an_older_adapter_gives_way_only_when_asked_for(replace: bool) -> None:
    from flows import train

    assert ("--replace" in train.training_command("recipe", "data", "out", ["seed=1"], replace)) is replace


def test_a_training_that_ends_early_tells_its_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import train
    from pipeline import InputError, WorkError

    monkeypatch.setattr(train, "_Progress", lambda: None)

    def end(code: str) -> None:
        monkeypatch.setattr(train, "training_command", lambda *_: [sys.executable, "-c", f"import os, sys; {code}"])
        train.run_training.fn("recipe", "data", str(tmp_path), [], True)

    with pytest.raises(InputError, match=r"^data: has no manifest$"):
        end("print('a warning', file=sys.stderr); print('glotloom: data: has no manifest', file=sys.stderr); sys.exit(2)")
    with pytest.raises(WorkError, match=r"^disk full$"):
        end("print('glotloom: disk full', file=sys.stderr); sys.exit(1)")
    with pytest.raises(WorkError, match="ended by SIGKILL"):
        end("os.kill(os.getpid(), 9)")


def test_steps_become_few_updates_and_other_lines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import train

    updates: list[tuple[float, str]] = []
    logger = logging.getLogger("test")
    logged: list[str] = []
    monkeypatch.setattr(logger, "info", lambda message, *arguments: logged.append(message % arguments))
    monkeypatch.setattr(train, "get_run_logger", lambda: logger)
    monkeypatch.setattr(train, "create_progress_artifact", lambda *_, **__: None)
    monkeypatch.setattr(train, "update_progress_artifact", lambda _, progress, words: updates.append((progress, words)))
    progress = train._Progress()
    for step in range(1, 201):
        progress.tell(json.dumps({"event": "step", "phase": "train", "step": step, "total": 200, "loss": 1.5}))
    progress.tell("a line of some library\n")
    assert updates == [(0.5, "train: 1 of 200, loss 1.5000"), (100.0, "train: 200 of 200, loss 1.5000")]
    assert logged == ["train: 1 of 200, loss 1.5000", "train: 200 of 200, loss 1.5000", "a line of some library"]


@pytest.mark.real
def test_the_nightly_deployment_builds_a_dataset_and_shows_it(prefect: Prefect, first: tuple[dict[str, Any], Path]) -> None:
    flow_run, out = first
    assert flow_run["state"]["type"] == "COMPLETED"
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    stages = [report["stage"] for report in manifest["stages"]]
    assert prefect.task_runs(flow_run) == [*stages, "publish"]
    assert "passages-fr" in stages

    funnel = json.loads(prefect.artifact(flow_run, "funnel"))
    assert [row["stage"] for row in funnel] == stages
    assert {row["made"] for row in funnel} == {"now"}
    rows = manifest["configs"]["fr_chat_specific"]
    report = prefect.artifact(flow_run, "report")
    assert f"| fr_chat_specific | {rows['train']['rows']} | {rows['validation']['rows']} |" in report
    assert str(out / "report.html") in report


@pytest.mark.real
def test_a_second_run_finds_everything_finished(prefect: Prefect, first: tuple[dict[str, Any], Path], recipe: Path) -> None:
    _, out = first
    before = _times(out)
    process, flow_run = prefect.run("build-dataset/nightly", "second", recipe=str(recipe), out=str(out))
    assert process.returncode == 0, process.stdout + process.stderr
    assert flow_run["state"]["type"] == "COMPLETED"
    assert {row["made"] for row in json.loads(prefect.artifact(flow_run, "funnel"))} == {"before"}
    assert _times(out) == before


def _times(out: Path) -> dict[str, int]:
    """When everything that a build promises to keep was written."""
    kept = [*out.glob(".stages/*-*/*.parquet"), *out.glob(".stages/*-*/manifest.json"), *out.glob("data/**/*.parquet")]
    return {str(path): path.stat().st_mtime_ns for path in [*kept, out / "manifest.json"]}


@pytest.mark.real
def test_a_misspelt_key_fails_the_run_with_its_one_line(prefect: Prefect, recipe: Path) -> None:
    wrong = prefect.folder / "wrong.toml"
    wrong.write_text(RECIPE.replace("min_tokens", "min_token"), "utf-8")
    out = prefect.folder / "nothing"
    process, flow_run = prefect.run("build-dataset/nightly", "misspelt", recipe=str(wrong), out=str(out))
    assert process.returncode != 0
    assert flow_run["state"]["type"] == "FAILED"
    message = flow_run["state"]["message"]
    assert message.startswith(f"{wrong}: knowledge.fr.min_token: unknown key")
    assert "min_tokens" in message and "\n" not in message
    assert not out.exists()


@pytest.mark.real
def test_a_cancelled_training_leaves_no_process_behind(prefect: Prefect, recipe: Path) -> None:
    """A deployment like the weekly one whose training never ends, with a child that ignores SIGTERM."""
    pid_file = prefect.folder / "child.pid"
    (prefect.folder / "endless.py").write_text(ENDLESS_TRAINING, "utf-8")
    command: Sequence[str] = [sys.executable, str(prefect.folder / "endless.py"), str(pid_file)]
    (prefect.folder / "endless_flow.py").write_text(
        f"from flows import train\ntrain.training_command = lambda *_: {command!r}\ntrain_adapter = train.train_adapter\n", "utf-8"
    )
    (flow,) = prefect.ask("/flows/filter", flows={"name": {"any_": ["train-adapter"]}})
    path = os.pathsep.join([str(prefect.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    deployment = prefect.ask(
        "/deployments/",
        name="endless",
        flow_id=flow["id"],
        entrypoint="endless_flow.train_adapter",
        work_pool_name="glotloom",
        job_variables={"env": {"PYTHONPATH": path}},
    )
    parameters = {"recipe": str(recipe), "data": str(prefect.folder / "dataset"), "out": str(prefect.folder / "adapter")}
    flow_run = prefect.ask(f"/deployments/{deployment['id']}/create_flow_run", name="endless", parameters=parameters)
    child = psutil.Process(int(wait_for(lambda: pid_file.read_text() if pid_file.exists() else None, "the training")))
    training = psutil.Process(child.ppid())
    wait_for(lambda: _progress(prefect, flow_run) > 0, "the progress artifact")

    prefect.ask(f"/flow_runs/{flow_run['id']}/set_state", state={"type": "CANCELLING"})
    _, alive = psutil.wait_procs([child, training], 90)  # the worker looks for cancelled runs every now and then
    assert not alive, prefect.logs()
    assert wait_for(lambda: _ended(prefect.flow_run("endless")), "the end of the run") == "CANCELLED"


@pytest.mark.real
def test_the_schedules_have_runs_to_come(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With SQLAlchemy 2.1 the server's scheduler fails every minute and says so only in its log. No worker runs here."""
    site = Prefect(tmp_path_factory.mktemp("schedules"))
    site.environment["PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED"] = "true"

    def scheduled() -> set[str]:
        runs = site.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        names = {deployment["id"]: deployment["name"] for deployment in site.ask("/deployments/filter")}
        return {names[run["deployment_id"]] for run in runs if run["auto_scheduled"]}

    try:
        site.start("server", "start", "--host", "127.0.0.1", "--port", str(site.port), name="server")
        wait_for(lambda: site.answers("/health"), "the server", 120)
        for command in (("work-pool", "create", "glotloom", "--type", "process"), ("deploy", "--all")):
            done = site.command(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        assert wait_for(lambda: scheduled() >= {"nightly", "weekly"}, "scheduled runs", 120), site.logs()
    finally:
        site.close()


def _progress(prefect: Prefect, flow_run: dict[str, Any]) -> float:
    found = prefect.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}})
    return float(found[0]["data"]) if found else 0.0


def _ended(flow_run: dict[str, Any]) -> str | None:
    kind = flow_run["state"]["type"]
    return kind if kind in {"CANCELLED", "COMPLETED", "FAILED", "CRASHED"} else None
