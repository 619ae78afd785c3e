"""hf://datasets/OWNER/NAME[/PATH][@REVISION]: the data files of a hub's repository."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune_runtime.contract.result import Exit, Reason, StepError

from . import hub
from .files import SourceFile, visible
from .room import check_size, room

SCHEME = "hf://datasets/"
_FORMATS = frozenset({".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt"})
# What stands beside data in a format of data: descriptions that `datasets` writes, and texts for people. By name without its suffix.
_NOT_DATA = frozenset({"dataset_info", "dataset_infos", "dataset_dict", "state", "readme", "license", "licence", "notice", "citation", "requirements"})


@dataclass(frozen=True)
class HubDataset:
    """A source, taken apart. `path`: file or folder in the repository, empty for all of it."""

    repository: hub.Repository
    path: str


def parse(source: str) -> HubDataset:
    """Parts of an hf://datasets/ source. Raises StepError InvalidConfig."""
    where, _, revision = source.removeprefix(SCHEME).partition("@")
    owner, _, rest = where.partition("/")
    name, _, path = rest.partition("/")
    if not (owner and name):
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{source} names no repository: write {SCHEME}OWNER/NAME[/PATH][@REVISION].")
    return HubDataset(hub.Repository("dataset", f"{owner}/{name}", revision, source), path.strip("/"))


def select(paths: Iterable[str], wanted: str) -> list[str]:
    """The repository's files that `wanted` stands for, by name: the file itself whatever it is called, or all data files below the folder."""
    found = sorted(paths)
    if wanted in found:
        return [wanted]
    return [path for path in found if _below(path, wanted) and visible(path) and _is_data(path)]


def fetch(source: str, scratch: Path) -> list[SourceFile]:
    """Downloads the source's files into `scratch`. Raises StepError."""
    dataset = parse(source)
    commit, files = hub.list_repository(dataset.repository)
    sizes = {file.path: file.size for file in files}
    paths = select(sizes, dataset.path)
    if not paths:
        formats = " ".join(sorted(_FORMATS))
        raise StepError(
            Exit.DATA_INVALID,
            Reason.DATASET_NOT_FOUND,
            f"{source} has no data files ({formats}, each also with .gz){f' at or below {dataset.path}' if dataset.path else ''}: look at the "
            "repository's files on the hub and name one of them, or a folder, in the source.",
        )
    scratch.mkdir(parents=True, exist_ok=True)
    check_size(source, sum(sizes[path] for path in paths), room(scratch))
    hub.download(dataset.repository, commit, paths, scratch)
    return [SourceFile(f"{SCHEME}{dataset.repository.name}/{path}", scratch / path, commit) for path in paths]


def _below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _is_data(path: str) -> bool:
    name = PurePosixPath(path.removesuffix(".gz"))
    return name.suffix in _FORMATS and name.stem.lower() not in _NOT_DATA
