"""The newest state of FineTuneJobs and ModelEndpoints: what the watch shows, or what we wrote where that is newer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .api import API_VERSION
from .children import Store
from .kube import Cluster
from .plan.types import Ref

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """An object that we reconcile."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def _version(raw: Raw) -> int:
    return int(raw["metadata"]["resourceVersion"])


class Objects:
    """Read side of the two kinds. A decision on an older state than the one we wrote could undo a record."""

    def __init__(self, cluster: Cluster, finetunejobs: Store, modelendpoints: Store) -> None:
        self._cluster = cluster
        self._stores = {"FineTuneJob": finetunejobs, "ModelEndpoint": modelendpoints}
        self._written: dict[Key, Raw] = {}
        self._unsure: set[Key] = set()

    async def newest(self, key: Key) -> Raw | None:
        """The object as it is known best; None when it is gone or going."""
        if key in self._unsure:
            await self.read(key)
        # A watch that started anew may still show an object of the same name that is gone.
        seen: Raw | None = max(self._stores[key.kind].get((key.namespace, key.name), ()), key=_version, default=None)
        ours = self._written.get(key)
        if seen is None and ours is not None:
            # The watch may be at the deletion of a predecessor of the same name: what we wrote to its successor must not be forgotten.
            seen = await self.read(key)
            ours = None if seen is None else seen
        if seen is not None and ours is not None and _version(ours) >= _version(seen):
            seen = ours
        else:
            self._written.pop(key, None)
        return None if seen is None or "deletionTimestamp" in seen["metadata"] else seen

    async def read(self, key: Key) -> Raw | None:
        """The object as the API server has it now; None when it is gone or going."""
        raw = await self._cluster.get(Ref(API_VERSION, key.kind, key.name), key.namespace)
        self._unsure.discard(key)
        if raw is None or "deletionTimestamp" in raw["metadata"]:
            return None
        self._written[key] = raw
        return raw

    def wrote(self, key: Key, raw: Raw) -> None:
        """We have written the object, and this is what the API server made of it."""
        self._written[key] = raw

    def unsure(self, key: Key) -> None:
        """We have tried to write the object and do not know what came of it."""
        self._unsure.add(key)
