"""What the operator's process knows: kopf's watches and indices, with all that can happen to them.

The operator's own handlers run, found in kopf's registry, so that its wiring is part of what is simulated. Kinds are not
ordered among each other; within a kind, events of different objects may overtake each other by a little. As kopf does it, a
watch that has to list anew does not tell of objects that were deleted in between: they stay in the indices for ever.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import kopf

from finetune_operator import handlers, names
from finetune_operator.reconcile import Caches

from .api import Api, Raw
from .world import World

KINDS = {
    "finetunejobs": "FineTuneJob", "modelendpoints": "ModelEndpoint", "jobs": "Job", "pods": "Pod", "deployments": "Deployment",
    "services": "Service", "httproutes": "HTTPRoute", "workloads": "Workload", "nodes": "Node", "configmaps": "ConfigMap",
}  # fmt: skip
# Kinds that the operator watches by label only (handlers.startup).
LABELLED = ("Job", "Pod", "Deployment", "Service", "HTTPRoute")


def _kind(handler: Any) -> str:
    selector = handler.selector
    plural = str(selector.plural or selector.any_name)
    return KINDS[plural]


def _matches(wanted: Any, labels: Raw) -> bool:
    return all(name in labels if value is kopf.PRESENT else labels.get(name) == value for name, value in (wanted or {}).items())


assert handlers  # its import has registered them
_REGISTRY = kopf.get_default_registry()
_INDEXERS: dict[str, list[Any]] = {}
_WATCHERS: dict[str, list[Any]] = {}
for _indexer in _REGISTRY._indexing.get_all_handlers():
    _INDEXERS.setdefault(_kind(_indexer), []).append(_indexer)
for _watcher in _REGISTRY._watching.get_all_handlers():
    _WATCHERS.setdefault(_kind(_watcher), []).append(_watcher)
WATCHED = tuple(dict.fromkeys([*_INDEXERS, *_WATCHERS]))


class Index:
    """One of kopf's indices: values by key, each under the object that it comes from."""

    def __init__(self) -> None:
        self._values: dict[Any, dict[str, Any]] = {}
        self._keys: dict[str, Any] = {}

    def get(self, key: Any, default: Any = (), /) -> Any:
        """Values of all objects under a key."""
        found = self._values.get(key)
        return list(found.values()) if found else default

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def __getitem__(self, key: Any) -> Any:
        return list(self._values[key].values())

    def replace(self, uid: str, key: Any, value: Any) -> None:
        """Take the newest value of an object."""
        if self._keys.get(uid, key) != key:
            self.discard(uid)
        self._keys[uid] = key
        self._values.setdefault(key, {})[uid] = value

    def discard(self, uid: str) -> None:
        """Forget an object."""
        key = self._keys.pop(uid, None)
        if key is not None:
            del self._values[key][uid]
            if not self._values[key]:
                del self._values[key]


def _arguments(raw: Raw) -> Raw:
    meta = raw["metadata"]
    return {
        "namespace": meta.get("namespace"), "name": meta["name"], "body": raw, "meta": meta, "labels": meta.get("labels") or {}, "uid": meta["uid"],
        "annotations": meta.get("annotations") or {}, "spec": raw.get("spec") or {}, "status": raw.get("status") or {},
    }  # fmt: skip


class Watches:
    """The watches of one operator process, from its first lists to its end."""

    def __init__(self, world: World, api: Api, memo: Any, lag: Callable[[str], float], jitter: float) -> None:
        """`memo` is what handlers get; `lag` gives the seconds that an event of a kind takes, `jitter` the most that handling it takes on top."""
        self._world, self._api, self._memo, self._lag = world, api, memo, lag
        self.indices: dict[str, Index] = {str(h.id): Index() for found in _INDEXERS.values() for h in found}
        self.caches = Caches(**{field.name: self.indices[field.name] for field in fields(Caches)})
        self._arrives: dict[str, float] = {}  # when the last event of a kind arrives
        self._due: dict[str, float] = {}  # when the last event of an object is handled
        self._jitter = jitter
        self._connection: dict[str, int] = {}
        self._lost: set[str] = set()  # kinds whose watch is down
        self.alive = True

    def start(self) -> None:
        """First lists: all indices are filled before any handler runs."""
        for kind in WATCHED:
            for raw in self._api.all(kind):
                if self._selected(kind, raw):
                    self._index(kind, raw)
        for kind in WATCHED:
            for raw in self._api.all(kind):
                if self._selected(kind, raw):
                    self._handle(kind, None, raw)

    def stop(self) -> None:
        """The process has ended."""
        self.alive = False

    def receive(self, kind: str, change: str, raw: Raw) -> None:
        """The API server sends an event; it arrives some time later."""
        if kind in self._lost or not self._selected(kind, raw):
            return
        uid, now = raw["metadata"]["uid"], self._world.now
        arrives = self._arrives[kind] = max(self._arrives.get(kind, 0.0), now + self._lag(kind))
        # One connection keeps its order; kopf's workers, one for each object, do not.
        due = self._due[uid] = max(self._due.get(uid, 0.0), arrives + self._world.delay(0.0, self._jitter))
        self._world.after(due - now, self._deliver, kind, change, raw, self._connection.get(kind, 0))

    def lose(self, kind: str, seconds: float) -> None:
        """The watch of a kind ends, and the server does not know its version any more: what happens meanwhile is never told."""
        if kind not in self._lost:
            self._lost.add(kind)
            self._connection[kind] = self._connection.get(kind, 0) + 1  # what is on its way never arrives
            self._world.after(seconds, self._list_again, kind)

    def repeat(self, kind: str) -> None:
        """Everything that is there is told once more."""
        for raw in self._api.all(kind):
            self.receive(kind, "MODIFIED", raw)

    def ghosts(self) -> bool:
        """Whether an index holds what does not exist any more."""
        return any(uid not in self._api.uids for index in self.indices.values() for uid in index._keys)

    def _list_again(self, kind: str) -> None:
        self._lost.discard(kind)
        if self.alive:
            for raw in self._api.all(kind):
                if self._selected(kind, raw):
                    self._deliver(kind, None, raw, self._connection[kind])

    def _selected(self, kind: str, raw: Raw) -> bool:
        return kind not in LABELLED or (raw["metadata"].get("labels") or {}).get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER

    def _deliver(self, kind: str, change: str | None, raw: Raw, connection: int) -> None:
        if not self.alive or connection != self._connection.get(kind, 0):
            return
        if change == "DELETED":
            for index in self.indices.values():
                index.discard(raw["metadata"]["uid"])
        else:
            self._index(kind, raw)
        self._handle(kind, change, raw)

    def _index(self, kind: str, raw: Raw) -> None:
        arguments = _arguments(raw)
        for handler in _INDEXERS.get(kind, ()):
            index = self.indices[str(handler.id)]
            found = handler.fn(memo=self._memo, **arguments) if _matches(handler.labels, arguments["labels"]) else {}
            if not found:  # kopf forgets what an object had under keys that it no longer has
                index.discard(arguments["uid"])
            for key, value in found.items():
                index.replace(arguments["uid"], key, value)

    def _handle(self, kind: str, change: str | None, raw: Raw) -> None:
        arguments = _arguments(raw)
        for handler in _WATCHERS.get(kind, ()):
            if _matches(handler.labels, arguments["labels"]):
                handler.fn(memo=self._memo, type=change, event={"type": change, "object": raw}, **arguments, **self.indices)
