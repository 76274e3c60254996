"""Files that are there whole or not at all, and their hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pipeline.errors import InputError

Item = TypeVar("Item")

HASHES_FOLDER = "file-hashes"
LOCK_FILE = ".lock"


def cache_folder() -> Path:
    """`GLOTLOOM_CACHE`, else `glotloom` in `XDG_CACHE_HOME`, else `~/.cache/glotloom`."""
    if chosen := os.environ.get("GLOTLOOM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glotloom"


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented, durable and atomic: the file is there whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Durable and atomic, as UTF-8."""
    with AtomicFile(path) as temporary:
        temporary.write_text(text, "utf-8")


class AtomicFile:
    """`with AtomicFile(path) as temporary:` write to `temporary`; it becomes `path`, durably, when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self._path)  # a failed write does not say where
            return
        with self._temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self._path)


class WorkLock:
    """One process at a time in a work folder; a second one is told `busy`, by default what a build has to say."""

    def __init__(self, work: Path, busy: str = "") -> None:
        self._path = work / LOCK_FILE
        self._busy = busy or f"{work}: another build is at work here; wait for it or choose another --work"

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(self._busy) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FolderLock:
    """One process at a time writes a folder, which is made if need be; a second one is told `busy`. It leaves no trace."""

    def __init__(self, folder: Path, busy: str) -> None:
        self._folder, self._busy = folder, busy

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._place = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._place)
            raise InputError(self._busy) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._place)


def stamp(path: Path) -> str:
    """Another one once a file, or what is in a folder, has changed since an earlier look of this process; empty if it is gone."""
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return ""
    return " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def file_hash(path: Path, work: Path) -> str:
    """SHA-256 of a file's bytes, remembered in the work folder by path, size and time of change (a dump is gigabytes)."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        return content_hash([(str(p.relative_to(path)), file_hash(p, work)) for p in inside])
    cache = work / HASHES_FOLDER / content_hash(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if cache.exists():
        return cache.read_text("utf-8")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_text(cache, digest)
    return digest


def content_hash(*parts: object, digits: int = 20) -> str:
    """The first `digits` hex digits (4 bits each) of the SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


class Spool(Generic[Item]):
    """Items that wait on the disk, in a file that is gone at the end; first all are put, then some are got."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def put(self, item: Item) -> int:
        """Where it is found again."""
        packed = zlib.compress(pickle.dumps(item), 1)
        place = self._file.tell()
        self._file.write(len(packed).to_bytes(4) + packed)
        return place

    def get(self, place: int) -> Item:
        """What was put there, as often as it is asked for."""
        self._file.seek(place)
        size = int.from_bytes(self._file.read(4))
        item: Item = pickle.loads(zlib.decompress(self._file.read(size)))  # noqa: S301  # written by this process
        return item
