"""The API server: objects with versions, and what it does by itself when they are deleted.

Objects are snapshots that nobody changes: every write puts a new dict in the place of the old one, so that whoever
holds an older one (a lagging watch) holds it at no cost.
"""

from collections.abc import Callable, Iterator
from typing import Any

from finetune_operator.kube import AlreadyExistsError, ApiError, GoneError, StaleError

from .world import World

Raw = dict[str, Any]
Key = tuple[str, str]  # namespace, name
Listener = Callable[[str, Raw, Raw | None], None]  # ADDED, MODIFIED or DELETED; the object; what it was before
FOREGROUND = "foregroundDeletion"


def key_of(raw: Raw) -> Key:
    """Namespace and name."""
    meta = raw["metadata"]
    return meta.get("namespace", ""), meta["name"]


def deleting(raw: Raw) -> bool:
    """Whether an object is on its way out."""
    return "deletionTimestamp" in raw["metadata"]


def controller_of(raw: Raw) -> Raw | None:
    """The owner reference that counts."""
    return next((o for o in raw["metadata"].get("ownerReferences") or () if o.get("controller")), None)


class Api:
    """Objects by kind and name. `effects` counts the writes that changed something."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kinds: dict[str, dict[Key, Raw]] = {}
        self._owned: dict[str, dict[tuple[str, Key], None]] = {}  # children by the UID of their owner
        self._listeners: dict[str, list[Listener]] = {}
        self._version = 0
        self.uids: set[str] = set()  # of objects that exist
        self.taken_over: set[str] = set()  # UIDs of what somebody made between the look of the operator and its apply
        self.terminating: set[str] = set()  # namespaces being deleted
        self.effects = 0
        self._proposed: dict[tuple[str, str, str], frozenset[str]] = {}  # names, by endpoint and field manager

    def listen(self, kind: str, listener: Listener) -> None:
        """Be told of every change of a kind, at once."""
        self._listeners.setdefault(kind, []).append(listener)

    def get(self, kind: str, key: Key) -> Raw | None:
        """An object as it is."""
        return self._kinds.get(kind, {}).get(key)

    def all(self, kind: str) -> list[Raw]:
        """All objects of a kind, oldest first."""
        return list(self._kinds.get(kind, {}).values())

    def select(self, kind: str, namespace: str | None, selector: str) -> list[Raw]:
        """Objects by a label selector of equalities and names."""
        wanted = [part.partition("=") for part in selector.split(",") if part]

        def fits(labels: Raw) -> bool:
            return all(name in labels and (not equal or labels[name] == value) for name, equal, value in wanted)

        return [raw for (at, _), raw in self._kinds.get(kind, {}).items() if namespace in {None, at} and fits(raw["metadata"].get("labels") or {})]

    def kinds(self) -> list[str]:
        """Kinds of which there were objects."""
        return list(self._kinds)

    def owned(self, uid: str, kind: str = "") -> Iterator[Raw]:
        """Children of an object."""
        for child_kind, key in list(self._owned.get(uid, ())):
            if kind in {"", child_kind} and (raw := self.get(child_kind, key)):
                yield raw

    def create(self, body: Raw) -> Raw:
        """A new object."""
        kind, key = body["kind"], key_of(body)
        if key[0] in self.terminating:
            raise ApiError(403, f"namespace {key[0]} is being terminated")
        if self.get(kind, key):
            raise AlreadyExistsError(409, f"{kind} {key[1]} already exists")
        self._version += 1
        uid = f"{kind.lower()}-{self._version}"
        meta = {**body["metadata"], "uid": uid, "generation": 1, "creationTimestamp": self._world.text(), "resourceVersion": str(self._version)}
        raw = {"status": {}, **body, "metadata": meta}
        self.uids.add(uid)
        for owner in meta.get("ownerReferences") or ():
            self._owned.setdefault(owner["uid"], {})[kind, key] = None
            if owner["uid"] not in self.uids:  # made for somebody who is gone already
                self._world.after(self._world.delay(0.5, 20), self._collect, kind, key, uid)
        self._put(kind, key, raw, None, "ADDED")
        return raw

    def update(
        self, raw: Raw, *, spec: Raw | None = None, status: Raw | None = None, meta: Raw | None = None, replace: Raw | None = None, **sections: Any
    ) -> Raw | None:
        """Change fields of an object; sections are merged one level deep, `status` and `replace`, a whole spec, replace. None when it is gone."""
        kind, key = raw["kind"], key_of(raw)
        old = self.get(kind, key)
        if old is None or old["metadata"]["uid"] != raw["metadata"]["uid"]:
            return None
        new = {**old, **sections}
        if spec is not None:
            new["spec"] = {**(old.get("spec") or {}), **spec}
        if replace is not None:
            new["spec"] = replace
        if status is not None:
            new["status"] = status
        if meta is not None:
            new["metadata"] = {**old["metadata"], **meta}
        if new == old:
            return old
        self._version += 1
        generation = old["metadata"]["generation"] + (new.get("spec") != old.get("spec"))
        new["metadata"] = {**new["metadata"], "resourceVersion": str(self._version), "generation": generation}
        self._put(kind, key, new, old, "MODIFIED")
        return new

    def propose(self, body: Raw, manager: str) -> Raw:
        """Server-side apply of proposals to a ModelEndpoint: fields of which each has a manager, who takes away what it does not repeat."""
        old, key = self.get(body["kind"], key_of(body)), (*key_of(body), manager)
        if old is None:
            raise GoneError(404, f"{body['kind']} {body['metadata']['name']} not found")
        mine, entries = self._proposed.get(key, frozenset()), {entry["name"]: entry for entry in body["spec"].get("adapters", ())}
        self._proposed[key] = frozenset([*entries, *(["candidate"] if "candidate" in body["spec"] else ())])
        dropped = mine - self._proposed[key]
        rest = {k: v for k, v in old["spec"].items() if k != "candidate" or "candidate" not in dropped}
        standing = {entry["name"]: entry for entry in old["spec"].get("adapters") or () if entry["name"] not in dropped}
        rest = {**rest, **{k: v for k, v in body["spec"].items() if k != "adapters"}, "adapters": list((standing | entries).values())}
        return self.update(old, replace=rest) or old

    def apply(self, body: Raw) -> Raw:
        """Server-side apply by the only manager of these fields."""
        old, uid = self.get(body["kind"], key_of(body)), body["metadata"].get("uid", "")
        if uid and uid != (old or {"metadata": {"uid": ""}})["metadata"]["uid"]:
            raise GoneError(409, f"Precondition failed: UID in precondition: {uid}")
        if old is None:
            return self.create(body)
        labels = {**(old["metadata"].get("labels") or {}), **(body["metadata"].get("labels") or {})}
        sections = {k: v for k, v in body.items() if k not in ("apiVersion", "kind", "metadata", "spec", "status")}
        meta = {"labels": labels} if labels else {}
        return self.update(old, spec=body.get("spec"), meta=meta, **sections) or old

    def apply_status(self, kind: str, key: Key, version: str, status: Raw) -> Raw:
        """Server-side apply of the whole status to a resource version."""
        old = self.get(kind, key)
        if old is None:
            raise GoneError(404, f"{kind} {key[1]} not found")
        if old["metadata"]["resourceVersion"] != version:
            raise StaleError(409, "the object has been modified; please apply your changes to the latest version and try again")
        return self.update(old, status=status) or old

    def delete(self, kind: str, key: Key, *, foreground: bool = False, grace: float | None = None) -> bool:
        """Delete; pods end with grace, foreground waits for the children. False when there is nothing."""
        raw = self.get(kind, key)
        if raw is None:
            return False
        if kind == "Pod":
            return self._delete_pod(raw, grace)
        if foreground and not deleting(raw):
            finalizers = [*(raw["metadata"].get("finalizers") or ()), FOREGROUND]
            self.update(raw, meta={"deletionTimestamp": self._world.text(), "finalizers": finalizers})
            for child in self.owned(raw["metadata"]["uid"]):
                self._world.after(self._world.delay(0.05, 5), self._collect, child["kind"], key_of(child), child["metadata"]["uid"])
            self._world.after(self._world.delay(0.05, 5), self._release, raw)
            return True
        if not foreground and not raw["metadata"].get("finalizers"):
            self.remove(raw)
        return True

    def remove(self, raw: Raw) -> None:
        """An object is gone for good; its children follow."""
        kind, key, uid = raw["kind"], key_of(raw), raw["metadata"]["uid"]
        found = self.get(kind, key)
        if found is None or found["metadata"]["uid"] != uid:
            return
        del self._kinds[kind][key]
        self.uids.discard(uid)
        for owner in found["metadata"].get("ownerReferences") or ():
            self._owned.get(owner["uid"], {}).pop((kind, key), None)
        for child in self.owned(uid):
            self._world.after(self._world.delay(0.05, 20), self._collect, child["kind"], key_of(child), child["metadata"]["uid"])
        self._version += 1
        last = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self._version)}}
        self._notify(kind, "DELETED", last, found)

    def _delete_pod(self, raw: Raw, grace: float | None) -> bool:
        seconds = raw["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        before = raw["metadata"].get("deletionGracePeriodSeconds")
        if before is None or seconds < before:
            self.update(raw, meta={"deletionTimestamp": raw["metadata"].get("deletionTimestamp") or self._world.text(), "deletionGracePeriodSeconds": seconds})
        return True

    def _collect(self, kind: str, key: Key, uid: str) -> None:
        """The garbage collector: deletes a child whose owner is gone or going."""
        raw = self.get(kind, key)
        if raw and raw["metadata"]["uid"] == uid:
            if self._world.trace is not None:
                self._world.note("collector", f"deletes {kind} {key[1]}")
            self.delete(kind, key)

    def _release(self, raw: Raw) -> None:
        """End of a foreground deletion, once no child is left."""
        children = list(self.owned(raw["metadata"]["uid"]))
        for child in children:
            if not deleting(child):  # made in the meantime
                self._collect(child["kind"], key_of(child), child["metadata"]["uid"])
        if children:
            self._world.after(self._world.delay(0.5, 5), self._release, raw)
        else:
            self.remove(raw)

    def _put(self, kind: str, key: Key, raw: Raw, old: Raw | None, change: str) -> None:
        self._kinds.setdefault(kind, {})[key] = raw
        self._notify(kind, change, raw, old)

    def _notify(self, kind: str, change: str, raw: Raw, old: Raw | None) -> None:
        self.effects += 1
        for listener in self._listeners.get(kind, ()):
            listener(change, raw, old)
