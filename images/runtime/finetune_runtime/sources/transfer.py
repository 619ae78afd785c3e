"""Large files into a directory that pods may share: gone on with where they stopped, verified, then renamed into place.

What is on its way is in DIRECTORY/.fetch. A part is named by the content that it will be, so that nobody goes on with what is left of another version.
Locks save bandwidth, no more: where a file system does not honour them, two pods write the same bytes to the same places, and the first one renames.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from finetune_runtime.contract.result import Exit, Reason, StepError

from .content import RemoteFile, has_size, is_whole, keep_record, matches

log = logging.getLogger(__name__)

STATE = ".fetch"
_PARALLEL_FILES = 4
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Figures:
    """What a fetch took, in bytes and seconds. `resumed`: what an interrupted fetch had left; what is in neither sum was there, whole."""

    files: int
    size: int
    fetched: int
    resumed: int
    seconds: float

    def __str__(self) -> str:
        there = self.size - self.fetched - self.resumed
        parts = [f"{_bytes(self.fetched)} fetched in {self.seconds:.0f} s" if self.fetched else "nothing to fetch"]
        parts += [f"{_bytes(self.resumed)} left by an interrupted fetch"] if self.resumed else []
        parts += [f"{_bytes(there)} there and verified"] if there > 0 else []
        return f"{_bytes(self.size)} in {self.files} file{'' if self.files == 1 else 's'}: {', '.join(parts)}"


class Part(FileIO):
    """A file that is being written, unbuffered: what is written survives the death of the process. `written`: bytes in all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o644))
        self.written = 0

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # callers have nothing but bytes
        """Writes all of it, unlike a bare FileIO, which tells of a volume that is full in its result only."""
        view = memoryview(data)
        while view:
            count = super().write(view)
            self.written += count
            view = view[count:]
        return len(data)


# Writes a file's bytes from an offset on to the part, which stands there. It may begin the part anew.
Read = Callable[[RemoteFile, int, Part], None]


def fetch(name: str, files: Sequence[RemoteFile], directory: Path, read: Read) -> Figures:
    """Brings the files into `directory`, of which `name` is the source. What is there, whole, is not touched.

    Raises StepError StorageUnavailable for content that is not what the source lists and for a volume that is full; and what `read` raises.
    """
    began = time.monotonic()
    (directory / STATE).mkdir(parents=True, exist_ok=True)
    missing = sum(file.size - _left(directory, file) for file in files if not has_size(directory / file.path, file.size))
    if missing > (free := shutil.disk_usage(directory).free):
        raise _full(name, f"{_bytes(missing)} more, and its volume has {_bytes(free)} free")
    try:
        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            came = list(pool.map(lambda file: _fetch(name, file, directory, read), files))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(name, "more than its volume has room for") from error
    fetched, resumed = (sum(counts) for counts in zip(*came, strict=True)) if came else (0, 0)
    return Figures(len(files), sum(file.size for file in files), fetched, resumed, time.monotonic() - began)


def _fetch(name: str, file: RemoteFile, directory: Path, read: Read) -> tuple[int, int]:
    """Bytes that were fetched, and bytes that an interrupted fetch had left."""
    target, record = directory / file.path, directory / STATE / f"{file.path}.json"
    if is_whole(file, target, record):
        return 0, 0
    with _lock(directory / STATE / f"{file.path}.lock"):
        if is_whole(file, target, record):  # another pod was faster
            return 0, 0
        path, fetched = _part(directory, file), 0
        while True:
            left = _left(directory, file)
            fetched += _write(file, left, path, read)
            try:
                if matches(file, path):
                    keep_record(file, path, record)
                    path.replace(target)
                    break
            except FileNotFoundError:  # without locks: another pod has renamed it
                pass
            if is_whole(file, target, record):
                break
            path.unlink(missing_ok=True)
            if not left:
                raise _unavailable(f"{file.path} of {name} is not what its source lists ({file.size} bytes, {file.digest or file.etag or 'no digest'}).")
            log.warning("what an interrupted fetch had left of %s is damaged: it is fetched anew", file.path)
        log.info("%s: %s fetched, %s were left", file.path, _bytes(fetched), _bytes(left))
        return fetched, left


def _write(file: RemoteFile, left: int, path: Path, read: Read) -> int:
    """Bytes that were written to the part, of which `left` are there."""
    with Part(path) as part:
        if part.seek(0, os.SEEK_END) > file.size:
            part.truncate(0)
        part.seek(left)
        if left < file.size:
            read(file, left, part)
        return part.written


def _part(directory: Path, file: RemoteFile) -> Path:
    version = hashlib.sha256(f"{file.digest} {file.etag} {file.size}".encode()).hexdigest()[:12]
    return directory / STATE / f"{file.path}.{version}.part"


def _left(directory: Path, file: RemoteFile) -> int:
    """Bytes that an interrupted fetch has left; a part that is too long is none."""
    path = _part(directory, file)
    size = path.stat().st_size if path.exists() else 0
    return size if size <= file.size else 0


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another pod fetches %s: waiting for it", path.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): pods that start at once may fetch it several times", path.stem, error.strerror)
        yield


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count} bytes"


def _full(name: str, what: str) -> StepError:
    return _unavailable(f"{name} needs {what}: give the pod a larger scratch volume or the model cache a larger claim, or delete models from the cache.")


def _unavailable(message: str) -> StepError:
    return StepError(Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
