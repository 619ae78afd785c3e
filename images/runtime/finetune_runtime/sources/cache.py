"""A volume that base models are kept in, shared by pods: a directory for every content of a model, and what a hub lists for its commits."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from .content import RemoteFile

_COMMIT = re.compile("[0-9a-f]{40}")


def directory(cache: Path, source: str, revision: str, files: Sequence[RemoteFile]) -> Path:
    """Another revision, or other objects under the same names, get another directory: engines have the files of this one open."""
    return cache / _name(source, [revision, [(file.path, file.size, file.etag) for file in files]])


def recall(cache: Path, source: str, revision: str) -> tuple[RemoteFile, ...]:
    """The listing of a commit, which never changes, so that pods start while the hub is away; empty when it is not known."""
    try:
        return tuple(RemoteFile(**file) for file in json.loads(_listing(cache, source, revision).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def remember(cache: Path, source: str, revision: str, files: Sequence[RemoteFile]) -> None:
    """Keeps the listing of a commit; listings of anything else may change."""
    if _COMMIT.fullmatch(revision):
        path = _listing(cache, source, revision)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.urandom(4).hex()}")
        part.write_text(json.dumps([asdict(file) for file in files]))
        part.replace(path)


def _listing(cache: Path, source: str, revision: str) -> Path:
    return cache / f"{_name(source, [revision])}.json"


def _name(source: str, content: Sequence[object]) -> str:
    return f"{PurePosixPath(source).name}-{hashlib.sha256(json.dumps([source, *content]).encode()).hexdigest()[:16]}"
