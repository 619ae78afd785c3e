"""Base models: what a source holds, and its files in a local directory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.s3.store import Store

from . import hub
from .mounts import mounted_path

# Tokenizers, configurations and templates; .py only where the user accepts remote code.
_METADATA = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model: its path below the model's directory, its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Listing:
    """What a model source holds. `revision` is the commit that an hf:// source stands for now, empty for other sources."""

    files: tuple[RemoteFile, ...]
    revision: str = ""


def model_name(spec: ModelSpec) -> str:
    """Last part of the source's path, by which ms-swift knows published models: Qwen3-8B of hf://Qwen/Qwen3-8B."""
    return PurePosixPath(spec.source.partition("://")[2]).name


def list_model(spec: ModelSpec, store: Store) -> Listing:
    """All files of the model. Raises StepError ModelNotFound when there is none."""
    if spec.source.startswith("hf://"):
        revision, sizes = hub.list_repository(_repository(spec))
        return Listing(tuple(RemoteFile(path, size) for path, size in sizes), revision)
    directory = mounted_path(spec.source)
    files = tuple(_walk(directory) if directory else _objects(spec, store))
    if not files:
        where = "the volume has no such directory, or it is empty" if directory else "no object is below it"
        raise StepError(Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND, f"{spec.source} holds no files: {where}. Check spec.model.source.")
    return Listing(files)


def fetch_model(spec: ModelSpec, store: Store, dest: Path, *, metadata_only: bool = False) -> Path:
    """A local directory with the model: the mounted one itself for pvc://, else `dest` with the files that loading needs.

    With `metadata_only` that is all but the weights. Files that are there already with the right size are kept.
    """
    if directory := mounted_path(spec.source):
        list_model(spec, store)
        return directory
    listing = list_model(spec, store)
    wanted = needed(listing.files, metadata_only=metadata_only, trust_remote_code=spec.trust_remote_code)
    missing = [file for file in wanted if not _same_size(dest / file.path, file.size)]
    if spec.source.startswith("hf://"):
        hub.download(_repository(spec), listing.revision, [file.path for file in missing], dest)
    else:
        for file in missing:
            store.download(f"{_prefix(spec)}{file.path}", dest / file.path)
    return dest


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


def _repository(spec: ModelSpec) -> hub.Repository:
    return hub.Repository("model", spec.source.removeprefix("hf://"), spec.revision, spec.source)


def _prefix(spec: ModelSpec) -> str:
    return f"{spec.source.rstrip('/')}/"


def _objects(spec: ModelSpec, store: Store) -> Iterator[RemoteFile]:
    for item in store.list(_prefix(spec)):
        path = item.uri.removeprefix(_prefix(spec))
        if path and not path.endswith("/"):
            yield RemoteFile(path, item.size)


def _walk(directory: Path) -> Iterator[RemoteFile]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield RemoteFile(path.relative_to(directory).as_posix(), path.stat().st_size)


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
