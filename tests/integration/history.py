"""Everything that happened to the objects of a namespace, in the order in which the API server did it."""

import http.client
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.integration.rest import Rest

Body = dict[str, Any]
KINDS = ("finetunejobs", "modelendpoints", "jobs", "pods", "configmaps", "services", "deployments")


@dataclass(frozen=True)
class Event:
    """One write. Versions of all kinds come from one counter, so that they tell the order also between kinds."""

    version: int
    kind: str  # plural
    type: str  # ADDED, MODIFIED or DELETED
    body: Body

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


def alive(pod: Body) -> bool:
    """Whether containers of a pod may run."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


class History:
    """Watches of all kinds of one namespace, from now on until `close`."""

    def __init__(self, rest: Rest, kinds: Sequence[str] = KINDS) -> None:
        self._rest, self._lock = rest, threading.Condition()
        self._events: list[Event] = []
        self._now: dict[str, dict[str, Body]] = {kind: {} for kind in kinds}
        self._connections: list[http.client.HTTPSConnection] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._follow, args=(kind, self._begin(kind)), daemon=True) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closed = True
        for connection in self._connections:
            if connection.sock:
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        self._rest.close()

    def events(self, since: int = 0) -> list[Event]:
        """What happened after a version, in order."""
        with self._lock:
            return sorted((e for e in self._events if e.version > since), key=lambda e: e.version)

    def await_events(self, mine: Callable[[Event], bool], count: int, give_up: Callable[[], bool]) -> None:
        """Sleep until so many events that are `mine` have come, or until one may give up."""
        seen = found = 0
        with self._lock:
            while found < count and not give_up():
                found += sum(map(mine, self._events[seen:]))
                seen = len(self._events)
                if found < count:
                    self._lock.wait(0.5)

    def now(self, kind: str, selector: str = "") -> list[Body]:
        """Objects of a kind that match a selector of label=value pairs, as last seen."""
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        with self._lock:
            return [o for o in self._now[kind].values() if wanted.items() <= (o["metadata"].get("labels") or {}).items()]

    def get(self, kind: str, name: str) -> Body:
        """An object as last seen; empty when it is gone."""
        with self._lock:
            return self._now[kind].get(name, {})

    def story(self, name: str = "support") -> list[str]:
        """'Phase Reason' of the newest FineTuneJob of a name, each time that it changed, up to now."""
        self._catch_up("finetunejobs", name)
        writes = [e.body for e in self.events() if e.kind == "finetunejobs" and e.name == name and e.type != "DELETED"]
        told: list[str] = []
        for body in (w for w in writes if w["metadata"]["uid"] == writes[-1]["metadata"]["uid"]):
            status = body.get("status") or {}
            if status.get("phase") and told[-1:] != [line := f"{status['phase']} {status['reason']}"]:
                told.append(line)
        return told

    def milestones(self, name: str = "support") -> list[str]:
        """The story without the lines that may be too short to be seen: how soon a pod comes after its Job depends on who is faster."""
        told: list[str] = []
        for line in self.story(name):
            if line.split()[1] not in ("Pending", "Starting", "WaitingForData") and line not in ("Preparing Running", *told[-1:]):
                told.append(line)
        return told

    def lies(self) -> list[str]:
        """Moments at which what is shown was not so: Suspended with a living pod, two living pods of one job's training."""
        pods: dict[str, Body] = {}
        found: list[str] = []
        for event in self.events():
            if event.kind == "pods":
                pods[event.name] = event.body
                if event.type == "DELETED":
                    del pods[event.name]
                working = [p for p in pods.values() if alive(p) and _uid(p) and _step(p)]
                for uid in {_uid(p) for p in working}:
                    names = [p["metadata"]["name"] for p in working if _uid(p) == uid]
                    if len(names) > 1:
                        found.append(f"{event.version}: {' and '.join(names)} live at the same time")
            elif event.kind == "finetunejobs" and (event.body.get("status") or {}).get("phase") == "Suspended":
                uid = event.body["metadata"]["uid"]
                found += [f"{event.version}: Suspended, but {n} lives" for n, p in pods.items() if _uid(p) == uid and alive(p)]
        return found

    def _catch_up(self, kind: str, name: str) -> None:
        """Watches come behind on a busy machine: wait until what the API server has of an object has been told."""
        found = self._rest.find(kind, name)
        version = int(found["metadata"]["resourceVersion"]) if found else 0
        with self._lock:
            if not self._lock.wait_for(lambda: not found or any(e.kind == kind and e.version >= version for e in self._events), timeout=30):
                raise AssertionError(f"the watch of {kind} has not told of version {version} of {name} within 30 s")

    def _begin(self, kind: str) -> str:
        answer = self._rest("GET", self._rest.path(kind))
        for item in answer["items"]:
            self._take(Event(int(item["metadata"]["resourceVersion"]), kind, "ADDED", item))
        return str(answer["metadata"]["resourceVersion"])

    def _follow(self, kind: str, version: str) -> None:
        try:
            for told in self._rest.watch(kind, version, self._connections.append):
                body = told["object"]
                self._take(Event(int(body["metadata"]["resourceVersion"]), kind, told["type"], body))
        except (OSError, ValueError, http.client.HTTPException):
            if not self._closed:
                raise

    def _take(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            if event.type == "DELETED":
                self._now[event.kind].pop(event.name, None)
            else:
                self._now[event.kind][event.name] = event.body
            self._lock.notify_all()


def _uid(pod: Body) -> str:
    return str((pod["metadata"].get("labels") or {}).get("finetune.dev/job-uid", ""))


def _step(pod: Body) -> str:
    return str((pod["metadata"].get("labels") or {}).get("finetune.dev/step", ""))
