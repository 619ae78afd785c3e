"""Dataset sources as local files. Nothing is held in memory: downloads are streamed to the scratch volume, mounts are read in place."""

from collections.abc import Iterator
from pathlib import Path

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.s3.store import Store

from . import https, hub_dataset
from .files import SourceFile, visible
from .mounts import mounted_path

__all__ = ["SourceFile", "fetch_dataset"]


def fetch_dataset(source: str, store: Store, scratch: Path) -> list[SourceFile]:
    """The files of one source, by name: the file or object itself, or all below the directory, prefix or repository.

    `scratch` is an empty directory, or one to be made, for the downloads of this source. Raises StepError DatasetNotFound when there is none.
    """
    if source.startswith("s3://"):
        return list(_download(source, store, scratch))
    if source.startswith(hub_dataset.SCHEME):
        return hub_dataset.fetch(source, scratch)
    if source.startswith("https://"):
        scratch.mkdir(parents=True, exist_ok=True)
        https.download(source, scratch / "file")
        return [SourceFile(https.shown(source), scratch / "file")]
    path = mounted_path(source)
    if path is None:
        kinds = "s3://, hf://datasets/, https://, pvc:// or configmap://"
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{source} is not a dataset source: begin it with {kinds}.")
    return _mounted(source, path)


def _download(source: str, store: Store, scratch: Path) -> Iterator[SourceFile]:
    prefix = f"{source.rstrip('/')}/"
    # An exact name wins: s3://data/train.json must not take s3://data/train.json.bak along.
    found = [source] if store.exists(source) else [item.uri for item in store.list(prefix) if visible(item.uri.removeprefix(prefix))]
    if not found:
        raise _not_found(f"{source} does not exist: no object has this name, and none is below {prefix}. Check bucket and key, or upload it.")
    for number, uri in enumerate(found):
        path = scratch / f"{number:05d}"
        store.download(uri, path)
        yield SourceFile(uri, path)


def _mounted(source: str, path: Path) -> list[SourceFile]:
    if path.is_file():
        return [SourceFile(source, path)]
    files = sorted(file for file in path.rglob("*") if file.is_file() and visible(file.relative_to(path).as_posix()))
    if files:
        return [SourceFile(f"{source.rstrip('/')}/{file.relative_to(path).as_posix()}", file) for file in files]
    if source.startswith("configmap://"):
        name, _, key = source.removeprefix("configmap://").partition("/")
        # Mounted as optional, so that a missing ConfigMap ends in this message and not in a pod that never starts.
        raise _not_found(f"{source} does not exist: there is no ConfigMap {name} with the key {key} in the job's namespace. Create it and the job anew.")
    raise _not_found(f"{source} does not exist: the volume has no such file and no such directory with files in it. The path begins at the volume's root.")


def _not_found(message: str) -> StepError:
    return StepError(Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND, message)
