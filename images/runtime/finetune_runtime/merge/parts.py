"""What a merged model has in storage before it is complete: files that a pod which comes later need not make again."""

from pydantic import ValidationError

from finetune_runtime.contract.artefact import FileEntry
from finetune_runtime.contract.base import Model
from finetune_runtime.s3.store import ObjectNotFound, Store

_DIRECTORY = ".parts"


class Part(Model):
    """What came of one file of the base. `size`: bytes of all tensors; `merged`: how many of them were changed."""

    files: list[FileEntry]
    size: int
    merged: int


class Parts:
    """Notes beside the files, one for each file of the base; written when what they tell of is uploaded."""

    def __init__(self, store: Store, uri: str) -> None:
        self._store, self._uri = store, uri
        self._there = {item.uri: item.size for item in store.list(f"{uri}/")}

    def find(self, path: str) -> Part | None:
        """What an earlier pod made of a file of the base, if it is still there."""
        if self._note(path) not in self._there:
            return None
        try:
            part = Part.model_validate_json(self._store.read(self._note(path)))
        except (ValidationError, ObjectNotFound):
            return None
        return part if all(self._there.get(f"{self._uri}/{entry.path}") == entry.size for entry in part.files) else None

    def keep(self, path: str, part: Part) -> None:
        """The part is uploaded."""
        self._store.put(self._note(path), part.model_dump_json(by_alias=True).encode())

    def forget(self) -> None:
        """The model is complete."""
        self._store.delete([item.uri for item in self._store.list(f"{self._uri}/{_DIRECTORY}/")])

    def _note(self, path: str) -> str:
        return f"{self._uri}/{_DIRECTORY}/{path}.json"
