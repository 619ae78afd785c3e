"""The newest state of FineTuneJobs and ModelEndpoints: what the watch shows, or what we wrote where that is newer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .api import API_VERSION
from .children import LOOK_EVERY, Store
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


def _unless_going(raw: Raw | None) -> Raw | None:
    return None if raw is None or "deletionTimestamp" in raw["metadata"] else raw


class Objects:
    """Read side of the two kinds. A decision on an older state than the one we wrote could undo a record."""

    def __init__(self, cluster: Cluster, finetunejobs: Store, modelendpoints: Store, now: Callable[[], float]) -> None:
        """`now` is the clock in seconds since the epoch."""
        self._cluster, self._now = cluster, now
        self._stores = {"FineTuneJob": finetunejobs, "ModelEndpoint": modelendpoints}
        self._known: dict[Key, Raw] = {}  # as we wrote or read it, until the watch shows it or a newer one
        self._unsure: set[Key] = set()
        self._looked: dict[Key, float] = {}
        self._ghosts: dict[Key, frozenset[str]] = {}  # UIDs

    async def newest(self, key: Key) -> Raw | None:
        """The object as it is known best; None when it is gone or going."""
        seen = self._seen(key)
        # The watch may be at the deletion of a predecessor of the same name: what we know of its successor must not be forgotten.
        if key in self._unsure or (not seen and key in self._known) or self._now() - self._looked.setdefault(key, self._now()) >= LOOK_EVERY:
            await self.read(key)
            seen = self._seen(key)
        known = self._known.get(key)
        # A watch that started anew may still show an object of the same name that is gone.
        raw = max((*((known,) if known else ()), *seen), key=_version, default=None)
        if raw is not known:
            self._known.pop(key, None)
        if raw is None:
            self._looked.pop(key, None)
        return _unless_going(raw)

    async def read(self, key: Key) -> Raw | None:
        """The object as the API server has it now; None when it is gone or going."""
        cached = {raw["metadata"]["uid"] for raw in self._stores[key.kind].get((key.namespace, key.name), ())}
        raw = await self._cluster.get(Ref(API_VERSION, key.kind, key.name), key.namespace)
        self._unsure.discard(key)
        self._looked[key] = self._now()
        # UIDs never come back: what was cached before and is not the one that is there is gone for good.
        if ghosts := frozenset(cached - ({raw["metadata"]["uid"]} if raw else set())):
            self._ghosts[key] = ghosts
        if raw is None:
            self._known.pop(key, None)
            return None
        self.learn(key, raw)
        return _unless_going(self._known[key])

    def learn(self, key: Key, raw: Raw) -> None:
        """The API server has answered with the object. Answers may overtake each other: the newest counts."""
        self._known[key] = max(raw, self._known.get(key, raw), key=_version)

    def unsure(self, key: Key) -> None:
        """We have tried to write the object and do not know what came of it."""
        self._unsure.add(key)

    def _seen(self, key: Key) -> tuple[Raw, ...]:
        """What the watch shows, without what is known to be gone."""
        cached: tuple[Raw, ...] = tuple(self._stores[key.kind].get((key.namespace, key.name), ()))
        if not cached:
            self._ghosts.pop(key, None)
        ghosts = self._ghosts.get(key, frozenset())
        return tuple(raw for raw in cached if raw["metadata"]["uid"] not in ghosts)
