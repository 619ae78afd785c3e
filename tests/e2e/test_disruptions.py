"""What a real node does to a training pod: drained, out of memory, without an image, without a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest

from .cluster import SYSTEM, items, kubectl, wait
from .conftest import Jobs
from .test_survival import LONG, committed, evict, train_pod


def attempts(status: dict[str, Any], step: str = "Train") -> list[dict[str, Any]]:
    return [a for a in status["attempts"] if a["step"] == step]


def test_a_drained_node_gets_its_pod_back_from_the_newest_checkpoint(jobs: Jobs) -> None:
    jobs.submit(training=LONG)
    wait("a checkpoint in S3", lambda: committed(jobs), 180)
    first = train_pod(jobs)
    try:
        kubectl("drain", _node(), "--pod-selector", "finetune.dev/step=Train", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
        known = committed(jobs)[-1]
        status = jobs.until(lambda s: s.get("reason") == "Unschedulable", 90, what="the next pod waits for a node that takes it")
        assert "unschedulable" in status["message"]
    finally:
        kubectl("uncordon", _node())
    status = jobs.phase("Succeeded", 300)
    (attempt,) = attempts(status)
    assert (attempt["interruptedBy"], attempt["interruptions"], attempt["exitCode"]) == ("EvictionByEvictionAPI", 1, 0)
    assert attempt["resumedFrom"] >= known
    assert attempt["pod"] != first
    assert (status["interruptions"], status.get("failures", {})) == (1, {})


def _node() -> str:
    return kubectl("get", "nodes", "-o", "name").strip().removeprefix("node/")


def _newer_checkpoint(jobs: Jobs) -> None:
    before = max(committed(jobs), default=0)
    wait("a newer checkpoint in S3", lambda: max(committed(jobs), default=0) > before, 180)


@pytest.mark.long
def test_evictions_do_not_use_up_the_retries(jobs: Jobs) -> None:
    jobs.submit(training={**LONG, "epochs": 16}, retries={"limit": 0})
    for _ in range(2):
        _newer_checkpoint(jobs)
        evict(jobs.namespace, train_pod(jobs))
        wait("the pod has gone", lambda: not train_pod(jobs), 60)
        wait("another pod runs", lambda: train_pod(jobs), 90)
    status = jobs.status()
    assert (status["phase"], status["interruptions"], status.get("failures", {})) == ("Training", 2, {})
    assert attempts(status)[0]["interruptedBy"] == "EvictionByEvictionAPI"


def test_a_pod_that_uses_more_memory_than_its_limit_is_explained(jobs: Jobs) -> None:
    jobs.submit(resources={"cpu": "500m", "memory": "200Mi", "scratch": "5Gi"}, retries={"limit": 1, "backoffSeconds": 1})
    status = wait("the job has failed", lambda: s if (s := jobs.status()).get("phase") == "Failed" else {}, 180)
    assert status["reason"] == "HostOutOfMemory"
    assert "raise spec.resources.memory" in status["message"]
    assert [(a["number"], a["reason"]) for a in attempts(status)] == [(1, "HostOutOfMemory"), (2, "HostOutOfMemory")]
    assert all(a["node"] and a["startedAt"] and a["endedAt"] for a in attempts(status))


@pytest.fixture
def wrong_image() -> Iterator[None]:
    """The installation names a trainer image that does not exist, until the test puts it right."""
    kubectl("-n", SYSTEM, "set", "env", "deployment/finetune-operator", "FINETUNE_TRAINER_IMAGE=localhost/finetune/trainer:typo")
    _rolled_out()
    yield
    _right_image()


def _rolled_out() -> None:
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/finetune-operator", "--timeout=120s")


def _right_image() -> None:
    kubectl("-n", SYSTEM, "set", "env", "deployment/finetune-operator", "FINETUNE_TRAINER_IMAGE=localhost/finetune/trainer:cpu")
    _rolled_out()


def test_a_wrong_image_is_named_and_the_job_goes_on_when_it_is_right(wrong_image: None, jobs: Jobs) -> None:
    jobs.submit()
    status = jobs.until(lambda s: s.get("reason") == "ImagePullFailed", 60)
    assert "localhost/finetune/trainer:typo" in status["message"]
    _right_image()
    jobs.until(lambda s: s.get("phase") == "Training", 90)
    assert len(items("jobs", jobs.namespace, "finetune.dev/step=Prepare")) == 1


def test_a_job_may_say_how_long_it_waits_for_a_node(jobs: Jobs) -> None:
    jobs.submit(resources={"cpu": "1", "memory": "3Gi", "gpuResource": "example.com/none"}, schedulingTimeoutSeconds=5)
    status = wait("the job has failed", lambda: s if (s := jobs.status()).get("phase") == "Failed" else {}, 90)
    assert status["reason"] == "Unschedulable"
    assert "example.com/none" in status["message"]
    wait("nothing of it is left waiting", lambda: not items("pods", jobs.namespace, "finetune.dev/step=Train"), 30)
