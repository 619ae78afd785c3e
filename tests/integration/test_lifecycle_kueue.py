"""Queued jobs with Kueue's real Workload kind; the tests do what its controller would do, and what its administrator may do.

tests/e2e/test_kueue.py has the controller itself.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.foreign_kinds import installed
from tests.integration.history import History
from tests.integration.job import TRAINED, deleting, finetunejob, interrupted, phase, prepared, reason, running
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, wait

QUEUED = {"queue": {"name": "training", "priorityClass": "high"}}
WAITS = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor training, 1 more needed"


@pytest.fixture(scope="module")
def crd(cluster: Kubectl) -> Iterator[None]:
    """Kueue's Workloads as the API server knows them, without Kueue."""
    with installed(cluster, "kueue-controller", "sigs.k8s.io/kueue", "config/components/crd/bases/kueue.x-k8s.io_workloads.yaml"):
        yield


@pytest.fixture(scope="module")
def knows_kueue(crd: None, process: Operator) -> None:
    """The operator has started with Kueue there."""
    process.stop()


class Workload:
    """What Kueue makes of the Job support-train-1."""

    def __init__(self, here: Namespace) -> None:
        self._here = here
        job = wait("the Job", lambda: here.get("job", "support-train-1"))
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "support-train-1", "uid": job["metadata"]["uid"], "controller": True}
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x", "resources": {}}]}}
        here.apply({
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload", "metadata": {"name": "job-support-train-1", "ownerReferences": [owner]},
            "spec": {"queueName": "training", "podSets": [{"name": "main", "count": 1, "template": template}]},
        })  # fmt: skip

    def get(self) -> dict[str, Any]:
        return self._here.get("workload", "job-support-train-1")

    def state(self, **conditions: tuple[str, str, str]) -> None:
        """Set conditions: type=(status, reason, message)."""
        told = [
            {"type": kind, "status": status, "reason": why, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
            for kind, (status, why, message) in conditions.items()
        ]
        self._here.rest.merge("workload", "job-support-train-1", {"status": {"conditions": told}}, "status")

    def admit(self) -> None:
        self.state(QuotaReserved=("True", "QuotaReserved", "Quota reserved in ClusterQueue training"), Admitted=("True", "Admitted", "admitted"))
        self._here.rest.merge("jobs", "support-train-1", {"spec": {"suspend": False}})

    def evict(self, why: str) -> None:
        self.state(QuotaReserved=("False", "Pending", f"{why} by a job of higher priority"), Evicted=("True", why, "evicted"))
        self._here.rest.merge("jobs", "support-train-1", {"spec": {"suspend": True}})

    @property
    def active(self) -> bool:
        return bool(self.get()["spec"].get("active", True))

    @property
    def paused(self) -> bool:
        return (self.get()["metadata"].get("annotations") or {}).get("finetune.dev/paused") == "true"


def quota(here: Namespace) -> dict[str, Any]:
    return next((c for c in here.status().get("conditions", []) if c["type"] == "QuotaReserved"), {})


def queued(here: Namespace) -> Workload:
    """A job whose training waits in its queue."""
    here.apply(finetunejob(**QUEUED))
    prepared(here)
    return Workload(here)


def test_kueue_may_come_after_the_operator(operator: Operator, here: Namespace, request: pytest.FixtureRequest) -> None:
    assert operator.ready()
    assert "Unresolved resources" in operator.log()
    here.apply(finetunejob(**QUEUED))
    prepared(here)
    status = reason(here, "WaitingForQueue")
    assert (status["phase"], quota(here)["status"]) == ("Queued", "Unknown")
    assert not here.items("pods", "finetune.dev/step=Train")
    request.getfixturevalue("crd")
    load = Workload(here)
    load.state(QuotaReserved=("False", "Pending", WAITS))
    wait("the operator ends, because only one that starts can watch a new kind", operator.has_ended, 60)
    operator.start()
    wait("Kueue's words are shown", lambda: quota(here).get("message") == WAITS)
    load.admit()
    here.end(running(here), 0, TRAINED)
    phase(here, "Succeeded")


def test_a_queued_job_says_what_kueue_says_and_starts_when_kueue_starts_it(knows_kueue: None, operator: Operator, here: Namespace, history: History) -> None:
    load = queued(here)
    labels = here.get("job", "support-train-1")["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["kueue.x-k8s.io/priority-class"]) == ("training", "high")
    load.state(QuotaReserved=("False", "Pending", WAITS))
    wait("Kueue's words are shown", lambda: quota(here).get("message") == WAITS)
    status = here.status()
    assert (status["phase"], status["reason"], status["message"]) == ("Queued", "Pending", WAITS)
    assert "activeSince" not in status, "waiting for quota costs no time"
    # What Kueue puts into a Job when it admits it is not ours to take back.
    here.rest.merge("jobs", "support-train-1", {"spec": {"template": {"spec": {"nodeSelector": {"pool": "training"}}}}})
    load.admit()
    pod = running(here)
    assert here.get("pod", pod)["spec"]["nodeSelector"] == {"pool": "training"}
    assert (quota(here)["status"], here.status()["phase"]) == ("True", "Training")
    here.end(pod, 0, TRAINED)
    phase(here, "Succeeded")
    assert history.milestones()[-2:] == ["Training Running", "Succeeded Completed"]


def test_a_queued_job_is_suspended_by_giving_its_quota_back(knows_kueue: None, operator: Operator, here: Namespace, history: History, node: str) -> None:
    load = queued(here)
    load.admit()
    first = running(here, node=node)
    here.edit(suspend=True)
    wait("the Workload is paused", lambda: load.paused and not load.active)
    assert here.get("job", "support-train-1")["spec"]["suspend"] is False, "only Kueue touches it"
    load.evict("Deactivated")
    here.end(first, 10, interrupted(20), ago=3600)
    here.gone(first)
    phase(here, "Suspended")
    here.edit(suspend=False)
    wait("the Workload is active again", lambda: load.active and not load.paused)
    load.admit()
    here.end(running(here, not_named=first), 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["interruptions"], status["attempt"]) == (0, 1)
    assert [line for line in history.milestones() if "Suspend" in line] == ["Training Suspending", "Suspended Suspended"]


def test_a_workload_that_its_administrator_has_stopped_stays_stopped(knows_kueue: None, operator: Operator, here: Namespace) -> None:
    load = queued(here)
    here.rest.merge("workload", "job-support-train-1", {"spec": {"active": False}})
    load.state(QuotaReserved=("False", "Inadmissible", "The workload is deactivated"))
    wait("Kueue's words are shown", lambda: quota(here).get("reason") == "Inadmissible")
    for wish in (True, False):
        here.edit(suspend=wish)
        phase(here, "Suspended" if wish else "Queued")
        time.sleep(1)
        assert not load.active
        assert not load.paused


def test_a_preempted_job_goes_back_to_the_queue_and_nothing_is_counted_against_it(
    knows_kueue: None, operator: Operator, here: Namespace, history: History, node: str
) -> None:
    load = queued(here)
    load.admit()
    pod = running(here, node=node)
    for number in range(1, 6):
        load.evict("Preempted")
        deleting(here, pod)
        here.end(pod, 10, interrupted(0), ago=3600)
        here.gone(pod)
        phase(here, "Queued")
        load.admit()
        pod = running(here, not_named=pod, node=node)
        attempt = here.status()["attempts"][-1]
        assert (attempt["number"], attempt["interruptedBy"], attempt["interruptions"]) == (1, "Preempted", number)
    here.end(pod, 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["interruptions"], status["idleInterruptions"], status["failures"]) == (5, 0, {})
    assert "Failed" not in " ".join(history.milestones())
