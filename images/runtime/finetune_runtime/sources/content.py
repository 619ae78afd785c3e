"""Is a local file what its source lists? Its digest decides, never its size alone."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

SHA256, GIT = "sha256", "git"
_CHUNK = 2**20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model: its path below the model's directory, its size in bytes.

    `digest`: its content as sha256:HEX, or git:HEX for git's name of a blob; empty where the source does not tell. `etag`: changes with the content.
    """

    path: str
    size: int
    digest: str = ""
    etag: str = ""


def is_whole(file: RemoteFile, path: Path, record: Path) -> bool:
    """Whether the file is there with the right content: as the source says or, where it says nothing, as recorded when it was fetched."""
    if not has_size(path, file.size):
        return False
    expected = file.digest or _recorded(file, record)
    if not expected:
        return False
    if digest(path, expected.partition(":")[0]) == expected:
        return True
    log.warning("%s is damaged: it is fetched anew", path)
    return False


def matches(file: RemoteFile, path: Path) -> bool:
    """Whether a file that was just fetched is what the source says, as far as it says anything."""
    return has_size(path, file.size) and (not file.digest or digest(path, file.digest.partition(":")[0]) == file.digest)


def keep_record(file: RemoteFile, path: Path, record: Path) -> None:
    """Remembers the content of a file that was just fetched from a source that tells no digests, so that later damage is found."""
    if not file.digest:
        record.write_text(json.dumps({"size": file.size, "etag": file.etag, "digest": digest(path, SHA256)}))


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of so many bytes."""
    return path.is_file() and path.stat().st_size == size


def digest(path: Path, kind: str) -> str:
    """KIND:HEX of a file's content, `kind` SHA256 or GIT."""
    found = hashlib.sha256() if kind == SHA256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # noqa: S324  git's choice
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return f"{kind}:{found.hexdigest()}"


def _recorded(file: RemoteFile, record: Path) -> str:
    try:
        found = json.loads(record.read_bytes())
        return str(found["digest"]) if (found["size"], found["etag"]) == (file.size, file.etag) else ""
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # another pod may be writing it, without locks
        return ""
