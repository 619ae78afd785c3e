"""Pods that are meant to stay: how a kubelet starts their containers anew, and whether they answer."""

from typing import Any

from .api import Raw

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds between two starts of a container that crashes; doubled each time
FORGIVEN = 600.0  # seconds after which a crash counts as the first one
TRIED = 8  # starts after which nothing new is learnt: the model leaves the container where it is


def stays(pod: Raw) -> bool:
    """Whether its containers are started again after they have ended."""
    return bool(pod["spec"].get("restartPolicy", "Always") == "Always")


def answers(pod: Raw) -> bool:
    """Whether a Service sends requests to a pod."""
    meta, status = pod["metadata"], pod["status"]
    if "deletionTimestamp" in meta or status.get("phase") != "Running":
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())


class Stay:
    """What the node knows of the containers of one pod, whether anybody hears it or not."""

    def __init__(self) -> None:
        self.restarts = 0
        self.ready = False
        self._pause = 0.0
        self._began = 0.0
        self._last: Raw = {}
        self._states: Raw = {}

    def started(self, now: float, text: str) -> None:
        """The containers start."""
        self._began = now
        self._states = {"containerStatuses": [self._status("main", {"running": {"startedAt": text}})]}

    def crashed(self, now: float, ended: Raw, container: str) -> float | None:
        """A container has ended. Returns the seconds until it is started again; None: never."""
        self.ready = False
        first = self._pause == 0 or now - self._began > FORGIVEN
        pause = 0.5 if first else self._pause
        self._pause = FIRST_PAUSE if first else min(LONGEST_PAUSE, 2 * self._pause)
        self._last = {"terminated": ended}
        waiting = {"reason": "CrashLoopBackOff", "message": f"back-off {pause:.0f}s restarting failed container={container}"}
        found = self._status(container, self._last if first else {"waiting": waiting})
        if container == "main":
            self._states = {"containerStatuses": [found]}
        else:
            later = {"name": "main", "state": {"waiting": {"reason": "PodInitializing"}}, "restartCount": 0}
            self._states = {"initContainerStatuses": [found], "containerStatuses": [later]}
        self.restarts += 1
        return pause if self.restarts < TRIED else None

    def _status(self, container: str, state: Raw) -> Raw:
        return {"name": container, "state": state, "lastState": self._last, "restartCount": self.restarts}

    def shown(self, status: Raw) -> Raw:
        """A pod's status with all this in it."""
        if not self._states:
            return status
        others = [c for c in status.get("conditions") or () if c["type"] != "Ready"]
        ready: dict[str, Any] = {"type": "Ready", "status": "True" if self.ready else "False"}
        bare = {key: value for key, value in status.items() if key != "initContainerStatuses"}
        return {**bare, "phase": "Running", **self._states, "conditions": [*others, ready]}
