"""The folder of one training run: what may stand in it, what was finished, and how a killed run goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from malora.errors import InputError

FORMAT = 2  # of training.json; also part of the fingerprint
CODE_VERSION = 3  # of malora: raise it when the same inputs give other bytes
LIBRARIES = ("torch", "transformers", "peft")  # their versions decide the bytes, too
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
REPORT = "training.json"
TIMINGS = "timings.json"
WORK = ".checkpoints"


def fingerprint(**inputs: Any) -> str:
    """Of everything that the result follows from: the inputs, this code and the libraries. Not of the machine."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    everything = {"format": FORMAT, "code": CODE_VERSION, "libraries": libraries, **inputs}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all, with sorted keys."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class RunFolder:
    """``out`` with the adapter and ``training.json`` (written last); unfinished work stands in ``out/.checkpoints``."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out
        self.work = out / WORK
        self.lock = out.absolute().with_name(f".{out.absolute().name}.lock")
        self.fingerprint = fingerprint

    def finished(self) -> dict[str, Any] | None:
        """The report of the same run, if it was finished before."""
        report = self._report()
        whole = all((self.out / name).is_file() for name in ADAPTER)
        return report if report is not None and whole and report.get("fingerprint") == self.fingerprint else None

    def prepare(self, *, replace: bool) -> None:
        """Makes the folder ready. Refuses foreign files, and a finished adapter of another run unless ``replace``.

        Several processes of one training may call it at the same time.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.lock):
            self._prepare(replace)

    def _prepare(self, replace: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: a file stands where the adapter's folder is to be; choose another place")
        if self.out.is_dir():
            self._refuse_foreign()
            if self._report() is not None and not replace:
                raise InputError(
                    f"{self.out} holds an adapter trained with other settings or data, or by another version of glotloom, "
                    f"{', '.join(LIBRARIES)}; remove it or choose another place"
                )
        run = self.work / "run.json"
        if not run.is_file() or read_json(run).get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            write_json(run, {"fingerprint": self.fingerprint})

    def _refuse_foreign(self) -> None:
        names = {path.name for path in self.out.iterdir()}
        known = {*ADAPTER, REPORT, TIMINGS, WORK} | {name for name in names if name.endswith(".unfinished")}
        ours = not names or WORK in names or self._report() is not None
        if names - known or not ours:
            foreign = min(names - known or names)
            raise InputError(f"{self.out} holds something else ({foreign}); choose an empty or a new folder")

    def _report(self) -> dict[str, Any] | None:
        try:
            report = read_json(self.out / REPORT)
        except (OSError, ValueError):
            return None
        return report if isinstance(report, dict) and "fingerprint" in report else None

    def finish(self, adapter: Path, record: dict[str, Any], timings: dict[str, float]) -> None:
        """Moves the adapter into its place and writes the report last; then the work is no longer needed."""
        (self.out / REPORT).unlink(missing_ok=True)  # of the run that this one replaces
        for name in ADAPTER:
            if (adapter / name).exists():  # else a kill came in between
                (adapter / name).replace(self.out / name)
        write_json(self.out / TIMINGS, timings)
        write_json(self.out / REPORT, record)
        self.sweep()

    def sweep(self) -> None:
        """Removes what is needed no longer; a kill may have left it."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.lock.unlink(missing_ok=True)
