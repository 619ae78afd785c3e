"""The Job controller (batch/v1, Kubernetes 1.31 and later), as far as a Job of one pod needs it.

The rules are read from the Job: backoffLimit, podFailurePolicy, podReplacementPolicy. A pod keeps its finalizer until it
is accounted for; one that was deleted because of a suspension loses it at once and so never counts.
"""

from typing import Any

from .api import Api, Key, Raw, controller_of, deleting, key_of
from .world import World

TRACKING = "batch.kubernetes.io/job-tracking"
TERMINAL = ("Succeeded", "Failed")


def has(raw: Raw, kind: str) -> bool:
    """Whether a condition is True."""
    return any(c["type"] == kind and c["status"] == "True" for c in raw["status"].get("conditions") or ())


def finished(job: Raw) -> bool:
    """Whether a Job is over."""
    return has(job, "Complete") or has(job, "Failed")


def terminal(pod: Raw) -> bool:
    """Whether all containers of a pod have ended for good."""
    return pod["status"].get("phase") in TERMINAL


def exit_code(pod: Raw) -> int:
    """Exit code of the main container; 0 when it never ran."""
    states = [(s.get("state") or {}).get("terminated") for s in pod["status"].get("containerStatuses") or ()]
    return next((int(s["exitCode"]) for s in states if s), 0)


def action(job: Raw, pod: Raw) -> str:
    """What podFailurePolicy says of a failed pod."""
    for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules", ()):
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes and exit_code(pod) and (exit_code(pod) in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
        if conditions and any(has(pod, c["type"]) for c in conditions):
            return str(rule["action"])
    return "Count"


class JobController:
    """Makes pods for Jobs, and Jobs' statuses from pods."""

    def __init__(self, world: World, api: Api, slowness: float) -> None:
        """`slowness` is the longest time in seconds that it takes to notice something."""
        self._world, self._api, self._slowness = world, api, slowness
        self._asked: set[Key] = set()
        self._made = 0
        api.listen("Job", lambda change, raw, _: self.ask(key_of(raw)) if change != "DELETED" else self._orphan(raw))
        api.listen("Pod", self._on_pod)

    def ask(self, key: Key) -> None:
        """Have a look at a Job soon."""
        if key not in self._asked:
            self._asked.add(key)
            self._world.after(self._world.delay(0.01, self._slowness), self._sync, key)

    def _on_pod(self, change: str, pod: Raw, _: Raw | None) -> None:
        owner = controller_of(pod)
        if owner and owner["kind"] == "Job":
            job = self._api.get("Job", (pod["metadata"]["namespace"], owner["name"]))
            if job and job["metadata"]["uid"] == owner["uid"]:
                self.ask(key_of(job))
            elif change == "ADDED" or (terminal(pod) and pod["metadata"].get("finalizers")):
                self._world.after(self._world.delay(0.01, 5), self._let_go, pod)

    def _orphan(self, job: Raw) -> None:
        for pod in self._api.owned(job["metadata"]["uid"], "Pod"):
            self._world.after(self._world.delay(0.01, 5), self._let_go, pod)

    def _let_go(self, pod: Raw) -> None:
        if pod["metadata"].get("finalizers"):
            self._api.update(pod, meta={"finalizers": []})

    def _sync(self, key: Key) -> None:
        self._asked.discard(key)
        job = self._api.get("Job", key)
        if job is None:
            return
        pods = list(self._api.owned(job["metadata"]["uid"], "Pod"))
        if finished(job) or deleting(job):
            for pod in pods:
                self._let_go(pod)
            return
        status = dict(job["status"])
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        for pod in pods:
            if terminal(pod) and pod["metadata"].get("finalizers"):
                self._account(job, pod, status, conditions)
                self._let_go(pod)
        alive = [p for p in pods if not terminal(p)]
        active = [p for p in alive if not deleting(p)]
        kept = self._manage(job, active, len(alive) - len(active), status, conditions)
        ending = len(alive) - len(active) + (len(active) if not kept else 0)
        status.update(active=kept, terminating=ending, conditions=list(conditions.values()))
        self._api.update(job, status=status)

    def _manage(self, job: Raw, active: list[Raw], ending: int, status: Raw, conditions: dict[str, Raw]) -> int:
        """End pods or make one. Returns how many are active now."""
        spec = job["spec"]
        if "FailureTarget" in conditions or "SuccessCriteriaMet" in conditions:
            for pod in active:
                self._api.delete("Pod", key_of(pod))
            if not active and not ending:
                self._end(status, conditions)
            return 0
        if spec.get("suspend"):
            for pod in active:
                self._let_go(pod)
                self._api.delete("Pod", key_of(pod))
            self._state(conditions, "Suspended", "True", "JobSuspended", "Job suspended")
            status.pop("startTime", None)
            return 0
        if conditions.get("Suspended", {}).get("status") == "True":
            self._state(conditions, "Suspended", "False", "JobResumed", "Job resumed")
        status.setdefault("startTime", self._world.text())
        waits = (spec.get("podReplacementPolicy") == "Failed" and ending) or status.get("succeeded") or job["metadata"]["namespace"] in self._api.terminating
        if not active and not waits:
            self._make_pod(job)
            return 1
        return len(active)

    def _account(self, job: Raw, pod: Raw, status: Raw, conditions: dict[str, Raw]) -> None:
        if pod["status"]["phase"] == "Succeeded":
            status["succeeded"] = status.get("succeeded", 0) + 1
            self._state(conditions, "SuccessCriteriaMet", "True", "CompletionsReached", "Reached expected number of succeeded pods")
            return
        match action(job, pod):
            case "Ignore":
                return
            case "FailJob":
                self._state(conditions, "FailureTarget", "True", "PodFailurePolicy", f"Container failed with exit code {exit_code(pod)} matching FailJob rule")
            case _:
                status["failed"] = status.get("failed", 0) + 1
                if status["failed"] > job["spec"].get("backoffLimit", 6):
                    self._state(conditions, "FailureTarget", "True", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _end(self, status: Raw, conditions: dict[str, Raw]) -> None:
        if "FailureTarget" in conditions:
            cause = conditions["FailureTarget"]
            self._state(conditions, "Failed", "True", cause["reason"], cause["message"])
        else:
            self._state(conditions, "Complete", "True", "CompletionsReached", "Reached expected number of succeeded pods")
            status["completionTime"] = self._world.text()

    def _state(self, conditions: dict[str, Raw], kind: str, value: str, reason: str, message: str) -> None:
        if conditions.get(kind, {}).get("status") != value:
            conditions[kind] = {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": self._world.text()}

    def _make_pod(self, job: Raw) -> Raw:
        self._made += 1
        template, meta = job["spec"]["template"], job["metadata"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": meta["name"], "batch.kubernetes.io/controller-uid": meta["uid"]}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{meta['name']}-{self._made:05d}", "namespace": meta["namespace"], "labels": labels, "ownerReferences": [owner],
                "annotations": template["metadata"].get("annotations") or {}, "finalizers": [TRACKING],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }  # fmt: skip
        self._world.note("jobs", f"makes pod {pod['metadata']['name']}")
        return self._api.create(pod)
