"""Base models: what a source holds, and its files in a local directory."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from finetune_runtime.contract.artefact import MANIFEST, Manifest
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.s3.store import Store

from . import cache as caching
from . import hub
from .content import SHA256, RemoteFile
from .mounts import mounted_path
from .transfer import Figures, Part, Read, fetch

__all__ = [
    "Listing",
    "Local",
    "RemoteFile",
    "fetch_files",
    "fetch_model",
    "is_pickle",
    "list_model",
    "model_name",
    "needed",
    "obtain_model",
    "read_part",
    "with_digests",
]

log = logging.getLogger(__name__)

# Tokenizers, configurations and templates; .py only where the user accepts remote code.
_METADATA = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


@dataclass(frozen=True)
class Listing:
    """What a model source holds. `revision` is the commit that an hf:// source stands for now, empty for other sources."""

    files: tuple[RemoteFile, ...]
    revision: str = ""


@dataclass(frozen=True)
class Local:
    """A model in a local directory. `figures`: what it took to get it there; None for a mounted one, which is read in place."""

    directory: Path
    figures: Figures | None = None


def model_name(spec: ModelSpec) -> str:
    """Last part of the source's path, by which ms-swift knows published models: Qwen3-8B of hf://Qwen/Qwen3-8B."""
    return PurePosixPath(spec.source.partition("://")[2]).name


def list_model(spec: ModelSpec, store: Store) -> Listing:
    """All files of the model. Raises StepError ModelNotFound when there is none."""
    if spec.source.startswith("hf://"):
        revision, found = hub.list_repository(_repository(spec))
        return Listing(tuple(found), revision)
    directory = mounted_path(spec.source)
    files = tuple(_walk(directory) if directory else _objects(spec, store))
    if not files:
        where = "the volume has no such directory, or it is empty" if directory else "no object is below it"
        raise StepError(Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND, f"{spec.source} holds no files: {where}. Check spec.model.source.")
    return Listing(files)


def fetch_model(spec: ModelSpec, store: Store, dest: Path, *, metadata_only: bool = False) -> Path:
    """A local directory with the model: the mounted one itself for pvc://, else `dest` with the files that loading needs.

    With `metadata_only` that is all but the weights. Whole files that are there already are kept, parts of files are gone on with.
    """
    return obtain_model(spec, store, dest, metadata_only=metadata_only).directory


def obtain_model(spec: ModelSpec, store: Store, dest: Path, *, cache: Path | None = None, metadata_only: bool = False) -> Local:
    """As fetch_model, and what it took. With `cache`, the files come into a directory of it that belongs to this very content of the model, not to `dest`."""
    if directory := mounted_path(spec.source):
        list_model(spec, store)
        return Local(directory)
    known = caching.recall(cache, spec.source, spec.revision) if cache else ()
    listing = Listing(known, spec.revision) if known else list_model(spec, store)
    wanted = needed(listing.files, metadata_only=metadata_only, trust_remote_code=spec.trust_remote_code)
    if cache:
        caching.remember(cache, spec.source, listing.revision, listing.files)
        dest = caching.directory(cache, spec.source, listing.revision, wanted)
    return fetch_files(spec, store, listing, wanted, dest)


def fetch_files(spec: ModelSpec, store: Store, listing: Listing, wanted: list[RemoteFile], dest: Path) -> Local:
    """These files of the listing in a local directory: the mounted one itself for pvc://, else `dest`."""
    if directory := mounted_path(spec.source):
        return Local(directory)
    with _reading(spec, store, listing.revision) as read:
        figures = fetch(spec.source, with_digests(spec, store, listing.files, wanted), dest, read)
    log.info("%s is in %s: %s", spec.source, dest, figures)
    return Local(dest, figures)


def read_part(spec: ModelSpec, store: Store, path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes from `start` on of one of the model's files; fewer where the file ends. For s3:// and pvc:// models."""
    if directory := mounted_path(spec.source):
        with (directory / path).open("rb") as file:
            file.seek(start)
            return file.read(length)
    return store.read_range(f"{_prefix(spec)}{path}", start, length)


def needed(files: Iterable[RemoteFile], *, metadata_only: bool, trust_remote_code: bool) -> list[RemoteFile]:
    """The files that loading a model reads. Repositories hold more: other frameworks' weights, original checkpoints, pictures.

    Pickled weights are taken only when they are trusted and there are no safetensors.
    """
    top = [file for file in files if "/" not in file.path]
    weights = [] if metadata_only else [file for file in top if file.path.endswith(".safetensors")]
    if not (weights or metadata_only) and trust_remote_code:
        weights = [file for file in top if is_pickle(file.path)]
    kinds = _METADATA | {".py"} if trust_remote_code else _METADATA
    return [file for file in top if PurePosixPath(file.path).suffix in kinds] + weights


def is_pickle(path: str) -> bool:
    """Whether a file may hold a pickle, which runs code when it is loaded."""
    return PurePosixPath(path).suffix in _PICKLES


@contextmanager
def _reading(spec: ModelSpec, store: Store, revision: str) -> Iterator[Read]:
    def read(file: RemoteFile, start: int, part: Part) -> None:
        with closing(store.stream(f"{_prefix(spec)}{file.path}", start=start, size=file.size, etag=file.etag)) as pieces:
            for piece in pieces:
                part.write(piece)

    if spec.source.startswith("hf://"):
        with hub.reading(_repository(spec), revision) as from_hub:
            yield from_hub
    else:
        yield read


def with_digests(spec: ModelSpec, store: Store, files: Iterable[RemoteFile], wanted: list[RemoteFile]) -> list[RemoteFile]:
    """The files with their digests where a manifest of ours lies beside them, as beside merged models; any other file of its name is an ordinary file."""
    if not spec.source.startswith("s3://") or not any(file.path == MANIFEST for file in files):
        return wanted
    try:
        manifest = Manifest.model_validate_json(store.read(f"{_prefix(spec)}{MANIFEST}"))
    except ValidationError:
        return wanted
    digests = {entry.path: f"{SHA256}:{entry.sha256}" for entry in manifest.files}
    return [replace(file, digest=digests.get(file.path, "")) for file in wanted]


def _repository(spec: ModelSpec) -> hub.Repository:
    return hub.Repository("model", spec.source.removeprefix("hf://"), spec.revision, spec.source)


def _prefix(spec: ModelSpec) -> str:
    return f"{spec.source.rstrip('/')}/"


def _objects(spec: ModelSpec, store: Store) -> Iterator[RemoteFile]:
    for item in store.list(_prefix(spec)):
        path = item.uri.removeprefix(_prefix(spec))
        if path and not path.endswith("/"):
            yield RemoteFile(path, item.size, etag=item.etag)


def _walk(directory: Path) -> Iterator[RemoteFile]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield RemoteFile(path.relative_to(directory).as_posix(), path.stat().st_size)
