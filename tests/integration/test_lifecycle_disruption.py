"""Pods that are taken away, killed or fail: what counts, what does not, and what is said about it."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.history import History
from tests.integration.job import TRAINED, deleting, finetunejob, interrupted, name_of, phase, prepared, running, train_message, training
from tests.integration.operator_process import Namespace, Operator, wait


def evicted(here: Namespace, pod: str, result: str) -> None:
    """A pod is evicted, commits what it has, and is gone."""
    here.evict(pod)
    here.end(pod, 10, result, ago=3600)
    here.gone(pod)


def last_attempt(here: Namespace) -> dict[str, Any]:
    return dict(here.status()["attempts"][-1])


def test_an_evicted_pod_is_replaced_in_the_same_attempt_and_the_status_says_who_took_it(
    operator: Operator, here: Namespace, history: History, node: str
) -> None:
    here.apply(finetunejob())
    first = training(here, node=node)
    here.evict(first)
    conditions = {c["type"]: c for c in here.get("pod", first)["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "EvictionByEvictionAPI", "the real API's own words"
    wait("the eviction is shown", lambda: here.status()["reason"] == "Stopping")
    assert not [p for p in here.items("pods", "finetune.dev/step=Train") if name_of(p) != first], "no second pod before the first one has ended"
    here.end(first, 10, interrupted(20), ago=3600)
    here.gone(first)
    second = running(here, not_named=first)
    attempt = last_attempt(here)
    assert (attempt["number"], attempt["interruptions"], attempt["interruptedBy"], attempt["resumedFrom"]) == (1, 1, "EvictionByEvictionAPI", 20)
    here.end(second, 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["interruptions"], status["idleInterruptions"], status["failures"], status["attempt"]) == (1, 0, {}, 1)
    assert history.milestones() == [
        "Training Running", "Training Stopping", "Training Running", "Succeeded Completed",
    ]  # fmt: skip


def test_a_pod_that_a_drained_node_throws_out_is_interrupted_not_failed(operator: Operator, here: Namespace, node: str) -> None:
    here.apply(finetunejob())
    first = training(here, node=node)
    taint = {"key": "example.org/spot-ends", "effect": "NoExecute"}
    here.rest.merge("nodes", node, {"spec": {"taints": [taint]}})
    deleting(here, first)
    here.rest.merge("nodes", node, {"spec": {"taints": None}})
    here.end(first, 10, interrupted(20), ago=3600)
    here.gone(first)
    running(here, not_named=first)
    assert last_attempt(here)["interruptedBy"] == "DeletionByTaintManager"
    assert here.status()["failures"] == {}


def test_a_pod_that_is_lost_with_its_node_is_interrupted_not_failed(operator: Operator, here: Namespace) -> None:
    lost = f"lost-{here.rest.namespace}"
    here.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": lost}})
    here.apply(finetunejob())
    first = training(here, node=lost)
    here.rest.delete("nodes", lost)
    wait("the garbage collector of pods gives it up, after its quarantine of 40 s", lambda: not here.get("pod", first), 90)
    running(here, not_named=first)
    status = here.status()
    assert (last_attempt(here)["interruptedBy"], status["attempt"], status["failures"]) == ("DeletionByPodGC", 1, {})


def test_a_pod_that_is_killed_while_it_is_evicted_is_interrupted_not_failed(operator: Operator, here: Namespace, node: str) -> None:
    here.apply(finetunejob())
    first = training(here, node=node)
    here.evict(first)
    here.end(first, 137, "", ago=3600)
    here.gone(first)
    running(here, not_named=first)
    status = here.status()
    assert (status["attempt"], status["failures"], status["interruptions"]) == (1, {}, 1)


def test_five_interruptions_with_progress_in_between_cost_no_retry(operator: Operator, here: Namespace, node: str) -> None:
    here.apply(finetunejob(retries={"limit": 1, "backoffSeconds": 1}))
    pod = training(here, node=node)
    for step in (5, 10, 15, 20, 25):
        evicted(here, pod, interrupted(step, step - 5))
        pod = running(here, not_named=pod, node=node)
    status = here.status()
    assert (status["phase"], status["interruptions"], status["idleInterruptions"], status["failures"]) == ("Training", 5, 0, {})
    here.end(pod, 0, TRAINED)
    assert phase(here, "Succeeded")["attempt"] == 1


def test_three_interruptions_in_a_row_without_progress_end_the_job_with_a_cure(operator: Operator, here: Namespace, history: History, node: str) -> None:
    here.apply(finetunejob())
    pod = training(here, node=node)
    for _ in range(2):
        evicted(here, pod, interrupted(0))
        pod = running(here, not_named=pod, node=node)
    evicted(here, pod, interrupted(0))
    status = phase(here, "Failed")
    assert (status["reason"], status["idleInterruptions"]) == ("NoProgress", 3)
    assert "EvictionByEvictionAPI" in status["message"]
    assert "checkpoints.everySteps" in status["message"]
    wait("no pod is left", lambda: not here.items("pods", "finetune.dev/step=Train"))
    assert history.milestones()[-1] == "Failed NoProgress"


@dataclass(frozen=True)
class Ending:
    """How a training pod ends, and what the job makes of it."""

    code: int
    message: str
    why: str  # the kubelet's word
    reason: str  # of the attempt
    final: bool
    counts: bool
    says: str  # part of the message


ENDINGS = [
    pytest.param(Ending(137, "", "OOMKilled", "HostOutOfMemory", False, True, "raise spec.resources.memory"), id="more memory than its limit"),
    pytest.param(Ending(137, "", "Error", "Killed", False, True, "killed by SIGKILL"), id="killed from outside"),
    pytest.param(Ending(139, "", "Error", "Killed", False, True, "killed by SIGSEGV"), id="a segmentation fault"),
    pytest.param(Ending(1, "Traceback\nRuntimeError: boom", "Error", "PodFailed", False, True, "RuntimeError: boom"), id="a crash without a result"),
    pytest.param(Ending(1, train_message("TrainingCrashed", "boom"), "Error", "TrainingCrashed", False, True, "boom"), id="a crash"),
    pytest.param(Ending(40, train_message("StorageUnavailable", "no answer"), "Error", "StorageUnavailable", False, False, "no answer"), id="no storage"),
    pytest.param(Ending(20, train_message("InvalidConfig", "bad"), "Error", "InvalidConfig", True, True, "bad"), id="a configuration that cannot work"),
    pytest.param(Ending(22, train_message("ModelInvalid", "bad"), "Error", "ModelInvalid", True, True, "bad"), id="a model that cannot work"),
    pytest.param(Ending(30, train_message("OutOfMemory", "16 GiB"), "Error", "OutOfMemory", True, True, "16 GiB"), id="too little GPU memory"),
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_end_of_a_pod_is_told_by_its_cause(operator: Operator, here: Namespace, ending: Ending) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.end(name_of(here.pod("Train")), ending.code, ending.message, ending.why)
    if ending.final:
        status = phase(here, "Failed")
        assert (status["reason"], status["failures"]) == (ending.reason, {"Train": 1})
        assert not here.items("jobs", "finetune.dev/attempt=2")
    else:
        here.pod("Train", 2)
        status = wait("the second attempt is recorded", lambda: s if (s := here.status())["attempt"] == 2 else {})
        assert (status["phase"], status["failures"]) == ("Training", {"Train": 1} if ending.counts else {})
    first = next(a for a in status["attempts"] if (a["step"], a["number"]) == ("Train", 1))
    assert (first["reason"], first["exitCode"]) == (ending.reason, ending.code)
    assert ending.says in first["message"]


def test_storage_that_comes_and_goes_never_ends_a_job(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(retries={"limit": 0, "backoffSeconds": 1}))
    prepared(here)
    for attempt in (1, 2, 3):
        here.end(name_of(here.pod("Train", attempt)), 40, train_message("StorageUnavailable", "no answer"))
    here.end(name_of(here.pod("Train", 4)), 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["attempt"], status["failures"]) == (4, {})


def test_a_pod_that_ends_well_without_a_result_has_not_trained_anything(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, "")
    wait("another attempt", lambda: here.status().get("attempt") == 2, 40)
    second = name_of(here.pod("Train", 2))
    assert here.status()["attempts"][-2]["reason"] == "ResultLost"
    assert here.status()["phase"] == "Training"
    here.end(second, 0, TRAINED)
    phase(here, "Succeeded")
