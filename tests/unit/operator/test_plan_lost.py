"""Pods that are lost before they ran, that something else keeps running, or whose node is gone: said as it is, counted as nobody's failure."""

from typing import Any

import pytest

from finetune_operator.api.jobstatus import Progress
from finetune_operator.observe import PodView, pod_view
from finetune_operator.plan.job import decide

from .makers import NOW, PREPARED_STEP, SETTINGS, START, TRAIN, TRAINED, condition, job, pod, settle, state

FAILED = job(TRAIN, failed=True, failure="Job has reached the specified backoff limit", finished_at=START)
RUNS: dict[str, Any] = {"state": {"running": {"startedAt": START}}}
LOOPS: dict[str, Any] = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container=istio-proxy"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": START}},
}
DONE: dict[str, Any] = {"state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": TRAINED, "finishedAt": START}}}
UNKNOWN: dict[str, Any] = {"state": {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "The container could not be located"}}}


def seen_pod(status: dict[str, Any], *, node: str = "n1", main: dict[str, Any] | None = None, sidecar: dict[str, Any] | None = None) -> PodView:
    """A pod of the first training attempt as the API server shows it; `sidecar`: a container that a service mesh has put in."""
    labels = {"finetune.dev/job": "support", "finetune.dev/job-uid": "uid-1", "batch.kubernetes.io/job-name": "support-train-1"}
    containers = [{"name": "main", "restartCount": 0, **main}] if main else []
    containers += [{"name": "istio-proxy", "restartCount": 7, **sidecar}] if sidecar else []
    meta = {"name": "support-train-1-x1", "uid": "pod-uid", "creationTimestamp": START, "labels": labels}
    return pod_view({"metadata": meta, "spec": {"nodeName": node} if node else {}, "status": {"containerStatuses": containers, **status}})


REJECTED = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed: devices unavailable for nvidia.com/gpu"}
NEVER_RAN: tuple[tuple[str, PodView, str], ...] = (
    ("the node has no GPU to give after all", seen_pod(REJECTED), "node n1 refused it: UnexpectedAdmissionError: Allocate failed"),
    ("deleted before a node was found", seen_pod({"phase": "Failed"}, node=""), "it was deleted before its container ran"),
    ("deleted while its image was pulled", seen_pod({"phase": "Failed"}, main=UNKNOWN), "it was deleted before its container ran, or the node started anew"),
)


@pytest.mark.parametrize(("lost", "words"), [c[1:] for c in NEVER_RAN], ids=[c[0] for c in NEVER_RAN])
def test_a_pod_that_never_ran_costs_no_retry_and_says_why(lost: PodView, words: str) -> None:
    plan = decide(state(PREPARED_STEP, FAILED, lost, live=True, spec={"retries": {"limit": 0}}), SETTINGS, NOW + 1)
    assert (plan.status["phase"], plan.status["reason"], plan.status.get("failures", {})) == ("Training", "PodLost", {})
    assert words in plan.status["message"]
    assert (plan.status["attempts"][-1]["reason"], plan.requeue_after) == ("PodLost", 29)


EVICTED = {"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi"'}
VAULT: dict[str, Any] = {"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
ITS_OWN_FAULT: tuple[tuple[str, PodView, str], ...] = (
    ("it used more disk than it may", seen_pod(EVICTED, main=UNKNOWN), 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi". Raise what it names'),
    ("a container that was injected fails each time", seen_pod({"phase": "Failed"}, sidecar=VAULT), "container istio-proxy ended with 1, which somebody has"),
)


@pytest.mark.parametrize(("failed", "words"), [c[1:] for c in ITS_OWN_FAULT], ids=[c[0] for c in ITS_OWN_FAULT])
def test_what_would_fail_again_and_again_counts(failed: PodView, words: str) -> None:
    plan = decide(state(PREPARED_STEP, FAILED, failed, live=True, spec={"retries": {"limit": 0}}), SETTINGS, NOW + 1)
    assert (plan.status["phase"], plan.status["reason"], plan.status["failures"]) == ("Failed", "PodFailed", {"Train": 1})
    assert words in plan.status["message"]


def test_a_pod_that_is_not_at_work_has_no_time_left() -> None:
    ran = Progress(step=100, total_steps=400, percent=25, eta_seconds=840, updated_at=START)
    first = decide(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, phase="Running", running=True, node="n1"), progress=ran), SETTINGS, NOW)
    assert first.status["display"] == {"step": "100/400", "eta": "14m"}
    waits = pod(TRAIN, name="x2", created_at="2027-01-15T08:10:00Z", unschedulable="0/3 nodes are available")
    plan = decide(state(PREPARED_STEP, job(TRAIN), waits, status=first.status, live=True), SETTINGS, NOW + 86400)
    assert (plan.status["reason"], plan.status["display"], "etaSeconds" in plan.status["progress"]) == ("Unschedulable", {"step": "100/400"}, False)


class TestInjected:
    @pytest.mark.parametrize("timeout", [None, 600])
    def test_a_sidecar_that_crashes_says_nothing_of_the_container_that_trains(self, timeout: int | None) -> None:
        spec = {"schedulingTimeoutSeconds": timeout} if timeout else {}
        plan = decide(state(PREPARED_STEP, job(TRAIN), seen_pod({"phase": "Running"}, main=RUNS, sidecar=LOOPS), spec=spec, live=True), SETTINGS, NOW + 7200)
        assert (plan.status["phase"], plan.status["reason"], plan.delete) == ("Training", "Running", ())

    def test_one_that_keeps_the_container_from_its_start_is_named(self) -> None:
        waits = {"state": {"waiting": {"reason": "PodInitializing"}}}
        plan = decide(state(PREPARED_STEP, job(TRAIN), seen_pod({"phase": "Pending"}, main=waits, sidecar=LOOPS), live=True), SETTINGS, NOW + 60)
        assert (plan.status["reason"], "istio-proxy" in plan.status["message"]) == ("CrashLoop", True)

    def test_one_that_never_ends_is_named_after_a_while_with_the_cure(self) -> None:
        seen = state(PREPARED_STEP, job(TRAIN), seen_pod({"phase": "Running"}, main=DONE, sidecar=RUNS), live=True)
        assert (decide(seen, SETTINGS, NOW + 5).status["reason"], decide(seen, SETTINGS, NOW + 5).requeue_after) == ("Running", 25)
        plan = decide(seen, SETTINGS, NOW + 60)
        assert (plan.status["phase"], plan.status["reason"]) == ("Training", "SidecarRunning")
        assert "sidecar.istio.io/inject=false" in plan.status["message"]


class TestLostNode:
    GONE = pod(TRAIN, phase="Running", node="n7", running=True, deleting=True, disruption="DeletionByTaintManager")

    def test_the_message_has_the_node_and_the_cure(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN), self.GONE, live=True), NOW + 86400)
        assert (plan.status["phase"], plan.status["reason"]) == ("Training", "Stopping")
        assert "on node n7" in plan.status["message"]
        assert "delete its Node object" in plan.status["message"]

    def test_also_of_a_job_that_is_to_be_suspended(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN, suspended=True), self.GONE, spec={"suspend": True}, live=True), NOW + 86400)
        suspended = condition(plan, "Suspended")
        assert (suspended["status"], suspended["reason"]) == ("Unknown", "Suspending")
        assert "on node n7 to commit its checkpoint and end. If that node is lost for good, delete its Node object" in suspended["message"]
