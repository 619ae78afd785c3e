"""The life of one FineTuneJob with everything in it, as a kubelet, a scheduler and a user play it, and what is left of it at the end."""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from tests.integration.history import Event, History
from tests.integration.job import PREPARED, TRAINED, finetunejob, interrupted, name_of, train_message
from tests.integration.operator_process import Namespace, wait

Body = dict[str, Any]
PATIENCE = 120.0  # seconds for one step: the operator may be killed several times in it
CHILDREN = ("jobs", "configmaps", "services", "deployments", "modelendpoints")
_TIMES = {"startTime", "completionTime", "startedAt", "podCreatedAt", "endedAt", "lastTransitionTime", "activeSince", "activeSeconds", "pod", "node"}


@dataclass
class Life:
    """A job that is prepared, evicted with a checkpoint, crashes, is suspended and resumed, succeeds and is served."""

    name: str
    here: Namespace
    history: History
    node: str
    steps: list[str] = field(default_factory=list)  # of the story that is played, for messages

    def owns(self, event: Event) -> bool:
        """Whether a write was to an object of this job, by whomever."""
        return self._mine(event.name)

    def writes(self) -> int:
        """Writes to its objects so far."""
        return sum(map(self.owns, self.history.events()))

    def live(self) -> None:
        """Play it from the beginning to the end."""
        self.here.apply(finetunejob(self.name, inference={}))
        self.here.end(self._pod("Prepare"), 0, PREPARED)
        first = self._runs(self._pod("Train"))
        self.here.evict(first)
        self._ends(first, interrupted(20))
        again = self._runs(self._pod("Train", but=first))
        self.here.end(again, 1, train_message("TrainingCrashed", "boom", resumedFrom=20, committedStep=30), ago=60)
        second = self._runs(self._pod("Train", 2))
        self.here.edit(self.name, suspend=True)
        self._ends(second, interrupted(35, 30))
        self._wait("is suspended", lambda: self._status().get("phase") == "Suspended")
        self.here.edit(self.name, suspend=False)
        last = self._runs(self._pod("Train", 2, but=second))
        self.here.end(last, 0, TRAINED)
        self.here.run(self._serving())
        self._wait("has succeeded", lambda: self._status().get("phase") == "Succeeded")

    def end_state(self) -> Body:
        """What is left, without times and generated names."""
        uid = self.history.get("finetunejobs", self.name)["metadata"]["uid"]
        made: dict[str, set[str]] = {}
        for event in self.history.events():
            if event.kind == "jobs" and self.owns(event):
                made.setdefault(event.name, set()).add(event.body["metadata"]["uid"])
        children = sorted(f"{k} {o['metadata']['name']}" for k in CHILDREN for o in self.history.now(k) if self._mine(o["metadata"]["name"]))
        found: Body = {"status": _timeless(self._status()), "children": children, "made": {name: len(uids) for name, uids in sorted(made.items())}}
        for attempt in found["status"]["attempts"]:
            attempt.pop("interruptedBy", None)  # who took a pod away goes with the pod, and nobody tells an operator that was not there
        text = json.dumps(found, sort_keys=True).replace(uid, "UID")
        text = re.sub(rf"{self.name}-(prep|train)-(\d)-[a-z0-9]{{5}}", r"NAME-\1-\2-POD", text)
        text = re.sub(rf"{self.name}(-config)?-[0-9a-f]{{8}}\b", r"NAME\1-HASH", text)
        return dict(json.loads(text.replace(self.name, "NAME").replace(self.here.rest.namespace, "NAMESPACE")))

    def bury(self) -> None:
        """Delete it."""
        self.here.rest.delete("finetunejobs", self.name)
        for pod in self.history.now("pods"):
            if self._mine(name_of(pod)):
                self.here.gone(name_of(pod))

    def _mine(self, name: str) -> bool:
        return name == self.name or name.startswith(f"{self.name}-")

    def _status(self) -> Body:
        return dict(self.history.get("finetunejobs", self.name).get("status") or {})

    def _wait(self, what: str, check: Any) -> Any:
        self.steps.append(what)
        return wait(f"{self.name} {what}", check, PATIENCE)

    def _pod(self, step: str, attempt: int = 1, but: str = "") -> str:
        selector = f"finetune.dev/job={self.name},finetune.dev/step={step},finetune.dev/attempt={attempt}"

        def find() -> str:
            return next((name_of(p) for p in self.history.now("pods", selector) if name_of(p) != but and "deletionTimestamp" not in p["metadata"]), "")

        name = str(self._wait(f"has a new pod of {step} {attempt}", find))
        self.here.bind(name, self.node)
        return name

    def _serving(self) -> str:
        return name_of(self._wait("has a serving pod", lambda: self.history.now("pods", f"finetune.dev/endpoint={self.name}"))[0])

    def _runs(self, pod: str) -> str:
        """Run a pod until the status names it: what happens to a pod that nobody has seen cannot be told."""
        self.here.run(pod)
        self._wait(f"names {pod}", lambda: [a for a in self._status().get("attempts", []) if a.get("pod") == pod])
        return pod

    def _ends(self, pod: str, result: str) -> None:
        """A pod that was asked to end does so, with a checkpoint, and is gone."""
        self._wait(f"ends {pod}", lambda: "deletionTimestamp" in self.history.get("pods", pod).get("metadata", {}))
        time.sleep(0.2)
        self.here.end(pod, 10, result, ago=3600)
        self.here.gone(pod)


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key not in _TIMES}
    return [_timeless(item) for item in tree] if isinstance(tree, list) else tree
