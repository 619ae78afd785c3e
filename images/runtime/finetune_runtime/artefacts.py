"""Directories in S3 that are complete or not there: files first, manifest last, nothing trusted without it."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from .contract.artefact import CHECKPOINTS_DIR, MANIFEST, FileEntry, Kind, Manifest, checkpoint_step
from .contract.config import AdapterRef
from .contract.result import Exit, Reason, StepError
from .s3.errors import ObjectNotFound
from .s3.store import Store

log = logging.getLogger(__name__)

_PARALLEL_FILES = 4

T = TypeVar("T")
R = TypeVar("R")


class ArtefactCorruptError(StepError):
    """What is stored is not what its manifest says. Reading it again does not help."""

    def __init__(self, message: str) -> None:
        super().__init__(Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(directory: Path) -> list[FileEntry]:
    """Entries of all regular files below `directory`, by path, without its manifest."""
    return [FileEntry(path=path, size=(directory / path).stat().st_size, sha256=sha256_of(directory / path)) for path in _files(directory)]


def commit(store: Store, directory: Path, uri: str, manifest: Manifest, *, replace: bool = False) -> AdapterRef:
    """Uploads `directory` to `uri` and makes it complete by writing its manifest.

    `manifest` says all but `files` and `created_at`, which are filled in here. When `uri` is complete already with the same
    files, nothing is written and the stored manifest is named in the answer. With other files it is an error unless `replace`,
    which takes the old manifest away first, so that no reader ever sees a mixture.
    """
    if existing := _existing(store, uri, replace=replace):
        if same(existing[0], manifest.model_copy(update={"files": describe(directory)})):
            return existing[1]
        if not replace:
            raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"{uri} is complete with other content; delete it to have it written again.")
        store.delete([_manifest_uri(uri)])
    # Files are hashed as they are sent: read once, and the manifest proves the very bytes that went out.
    files = _in_parallel(lambda path: _upload_file(store, directory, uri, path), _files(directory))
    return seal(store, uri, manifest.model_copy(update={"files": files}))


def seal(store: Store, uri: str, manifest: Manifest) -> AdapterRef:
    """Makes a directory complete whose files, which `manifest` lists, are uploaded."""
    manifest = manifest.model_copy(update={"created_at": datetime.now(UTC).isoformat(timespec="seconds")})
    if not store.put_new(_manifest_uri(uri), manifest.encode()):
        # Either a retry of our own write (its first answer was lost) or a second writer: only equal content is a success.
        existing = committed(store, uri)
        if existing is None or not same(existing[0], manifest):
            raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"{uri} was completed by another writer; only one pod may work for a job at a time.")
        return existing[1]
    return AdapterRef(uri=uri, manifest_sha256=manifest.digest())


def same(left: Manifest, right: Manifest) -> bool:
    """Whether two manifests describe the same content; when it was written and by what does not matter."""
    ignored = {"created_at", "details"}
    return left.model_dump(exclude=ignored) == right.model_dump(exclude=ignored)


def load(store: Store, uri: str) -> Manifest | None:
    """The manifest of a complete directory, None for one that is not complete. Raises ArtefactCorruptError."""
    found = committed(store, uri)
    return found[0] if found else None


def load_adapter(store: Store, uri: str) -> Manifest:
    """The manifest of an adapter. Raises StepError InvalidConfig where there is none, ArtefactCorruptError."""
    manifest = load(store, uri)
    if manifest is None:
        raise StepError(Exit.INVALID_CONFIG, Reason.MODEL_NOT_FOUND, f"{uri} holds no committed adapter: correct its URI, or train it again.")
    if manifest.kind is not Kind.ADAPTER:
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{uri} is a {manifest.kind}, not an Adapter: name the directory adapter of a job.")
    return manifest


def committed(store: Store, uri: str) -> tuple[Manifest, AdapterRef] | None:
    """As `load`, with the reference that proves this very manifest."""
    try:
        data = store.read(_manifest_uri(uri))
    except ObjectNotFound:
        return None
    # The digest of the bytes as they are stored: a newer version of the contract may encode the same manifest differently.
    return _parse(data, uri), AdapterRef(uri=uri, manifest_sha256=hashlib.sha256(data).hexdigest())


def fetch(store: Store, uri: str, dest: Path, manifest_sha256: str | None = None) -> Manifest:
    """Downloads a complete directory and proves every byte against the manifest, and the manifest against `manifest_sha256`.

    Files that are there already with the right content are kept. Raises ObjectNotFound when `uri` is not complete and
    ArtefactCorruptError when the content is not what was committed.
    """
    data = store.read(_manifest_uri(uri))
    if manifest_sha256 and hashlib.sha256(data).hexdigest() != manifest_sha256:
        raise ArtefactCorruptError(f"{_manifest_uri(uri)} is not the manifest that was committed: its SHA-256 is not {manifest_sha256}.")
    manifest = _parse(data, uri)
    _in_parallel(lambda entry: _fetch_file(store, uri, dest, entry), manifest.files)
    return manifest


def delete(store: Store, uri: str) -> None:
    """Removes a directory, the manifest first: what is half deleted is not complete."""
    store.delete([_manifest_uri(uri)])
    store.delete([item.uri for item in store.list(f"{uri}/")])


def checkpoints(store: Store, prefix: str) -> list[tuple[int, str, Manifest]]:
    """(step, URI, manifest) of the complete checkpoints of a job, newest first."""
    found = []
    for item in store.list(f"{prefix}/{CHECKPOINTS_DIR}/checkpoint-"):
        directory, _, name = item.uri.rpartition("/")
        step = checkpoint_step(directory.rpartition("/")[2])
        if name != MANIFEST or step is None:
            continue
        try:
            manifest = load(store, directory)
        except ArtefactCorruptError as error:
            log.warning("ignoring a checkpoint: %s", error.message)
            continue
        if manifest:
            found.append((step, directory, manifest))
    return sorted(found, key=lambda entry: entry[0], reverse=True)


def _manifest_uri(uri: str) -> str:
    return f"{uri}/{MANIFEST}"


def _existing(store: Store, uri: str, *, replace: bool) -> tuple[Manifest, AdapterRef] | None:
    try:
        return committed(store, uri)
    except ArtefactCorruptError:
        if not replace:
            raise
        store.delete([_manifest_uri(uri)])
        return None


def _parse(data: bytes, uri: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ArtefactCorruptError(f"{_manifest_uri(uri)} is not a manifest ({error.error_count()} errors).") from error
    for entry in manifest.files:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts:  # whoever can write to the bucket must not choose where we write
            raise ArtefactCorruptError(f"{_manifest_uri(uri)} names a file outside its directory: {entry.path!r}.")
    return manifest


def _files(directory: Path) -> list[str]:
    """All regular files below `directory`, relative to it and in order, without its manifest."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return [path.relative_to(directory).as_posix() for path in paths]


def _upload_file(store: Store, directory: Path, uri: str, path: str) -> FileEntry:
    sent = store.upload(directory / path, f"{uri}/{path}")
    return FileEntry(path=path, size=sent.size, sha256=sent.sha256)


def _fetch_file(store: Store, uri: str, dest: Path, entry: FileEntry) -> None:
    path = dest / entry.path
    if path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256:
        return
    source = f"{uri}/{entry.path}"
    try:
        store.download(source, path)
    except ObjectNotFound as error:
        raise ArtefactCorruptError(f"{source} is missing though its manifest lists it.") from error
    if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
        path.unlink()
        raise ArtefactCorruptError(f"{source} does not have the content that its manifest lists.")


def _in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of `work` for each item; the first error is raised once the work under way is done, the rest is not started."""
    with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
