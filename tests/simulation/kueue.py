"""Kueue 0.17 for Jobs with a queue label: a Workload for each Job, a quota of one Job, preemption by outsiders.

The Job's spec.suspend is Kueue's alone. Somebody who sets the Workload's spec.active to false takes its quota back.
"""

from typing import Any

from finetune_operator.names import LABEL_QUEUE

from .api import Api, Key, Raw, controller_of, deleting, key_of
from .jobs import finished, has
from .world import World

FLAVOR = {"cloud.example/flavor": "gpu"}


def queued(job: Raw) -> bool:
    """Whether a Job is Kueue's business."""
    return LABEL_QUEUE in (job["metadata"].get("labels") or {})


class Kueue:
    """The controller and its one queue."""

    def __init__(self, world: World, api: Api, slowness: float) -> None:
        """`slowness` is the longest time in seconds that it takes to notice something."""
        self._world, self._api, self._slowness = world, api, slowness
        self._asked: set[Key] = set()
        self.outsider = False  # somebody else has the quota
        api.listen("Job", self._on_job)
        api.listen("Workload", self._on_workload)

    def preempt(self, seconds: float) -> None:
        """Somebody more important takes the quota for so long."""
        self._world.note("kueue", "an outsider takes the quota")
        self.outsider = True
        for load in self._api.all("Workload"):
            if has(load, "QuotaReserved") and not has(load, "Finished"):
                self._world.hits.add("kueue preempts")
                self._evict(load, "Preempted", "Preempted to accommodate a workload of higher priority")
        self._world.after(seconds, self._leave)

    def _leave(self) -> None:
        self.outsider = False
        self._schedule()

    def _on_job(self, change: str, job: Raw, _: Raw | None) -> None:
        if queued(job) and change != "DELETED":
            self._ask(key_of(job))

    def _on_workload(self, change: str, load: Raw, _: Raw | None) -> None:
        if change == "DELETED":
            self._world.after(self._world.delay(0.05, self._slowness), self._schedule)
        if owner := controller_of(load):
            self._ask((load["metadata"]["namespace"], owner["name"]))

    def _ask(self, key: Key) -> None:
        if key not in self._asked:
            self._asked.add(key)
            self._world.after(self._world.delay(0.01, self._slowness), self._sync, key)

    def _load(self, job: Raw) -> Raw | None:
        return next((load for load in self._api.owned(job["metadata"]["uid"], "Workload") if not deleting(load)), None)

    def _sync(self, key: Key) -> None:
        self._asked.discard(key)
        job = self._api.get("Job", key)
        if job is None or deleting(job) or not queued(job):
            return
        load = self._load(job)
        if load is None:
            if not finished(job):
                self._suspend(job)
                self._create(job)
            return
        if finished(job):
            if not has(load, "Finished"):
                self._state(load, Finished=("True", "Succeeded", "Job finished"))
                self._schedule()
            return
        reserved, evicted = has(load, "QuotaReserved"), has(load, "Evicted")
        if not load["spec"].get("active", True) and not evicted:
            self._evict(load, "Deactivated", "The workload is deactivated")
        elif reserved and evicted:
            self._suspend(job)
            if not (self._api.get("Job", key) or job)["status"].get("active"):
                self._state(
                    load, QuotaReserved=("False", "Pending", "The workload was evicted"), Admitted=("False", "NoReservation", "The workload has no reservation")
                )
                self._world.after(self._world.delay(0.05, self._slowness), self._schedule)
        elif not reserved:
            self._suspend(job)
            self._schedule()
        elif job["spec"].get("suspend"):
            self._world.note("kueue", f"admits Job {key[1]}")
            template = job["spec"]["template"]
            placed = {**template, "spec": {**template["spec"], "nodeSelector": {**(template["spec"].get("nodeSelector") or {}), **FLAVOR}}}
            self._api.update(job, spec={"suspend": False, "template": placed})

    def _suspend(self, job: Raw) -> None:
        if not job["spec"].get("suspend"):
            self._world.note("kueue", f"suspends Job {job['metadata']['name']}")
            self._api.update(job, spec={"suspend": True})

    def _create(self, job: Raw) -> None:
        meta = job["metadata"]
        if meta["namespace"] in self._api.terminating:
            return
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}
        name = f"job-{meta['name']}-{meta['uid'].rpartition('-')[2]}"
        if self._api.get("Workload", (meta["namespace"], name)):
            return
        body: dict[str, Any] = {"kind": "Workload", "metadata": {"name": name, "namespace": meta["namespace"], "ownerReferences": [owner]}}
        self._api.create({**body, "spec": {"queueName": meta["labels"][LABEL_QUEUE], "active": True}})

    def _schedule(self) -> None:
        """Give the quota to the oldest that waits."""
        loads = [load for load in self._api.all("Workload") if not has(load, "Finished") and not deleting(load)]
        busy = self.outsider or any(has(load, "QuotaReserved") for load in loads)
        for load in loads:
            if has(load, "QuotaReserved") or not load["spec"].get("active", True):
                continue
            if busy:
                message = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu, 1 more needed"
                self._state(load, QuotaReserved=("False", "Pending", message))
            else:
                busy = True
                self._world.note("kueue", f"reserves quota for {load['metadata']['name']}")
                self._state(
                    load,
                    QuotaReserved=("True", "QuotaReserved", "Quota reserved in ClusterQueue gpus"),
                    Admitted=("True", "Admitted", "The workload is admitted"),
                    Evicted=("False", "QuotaReserved", "Previously evicted"),
                )

    def _evict(self, load: Raw, reason: str, message: str) -> None:
        self._world.note("kueue", f"evicts {load['metadata']['name']}: {reason}")
        self._state(load, Evicted=("True", reason, message))

    def _state(self, load: Raw, **conditions: tuple[str, str, str]) -> None:
        found = {c["type"]: c for c in load["status"].get("conditions") or ()}
        for kind, (status, reason, message) in conditions.items():
            old = found.get(kind)
            if old is None and status == "False" and kind == "Evicted":
                continue
            since = old["lastTransitionTime"] if old and old["status"] == status else self._world.text()
            found[kind] = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
        self._api.update(load, status={**load["status"], "conditions": list(found.values())})
