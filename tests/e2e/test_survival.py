"""What a job survives, and what deleting it takes along."""

import json
from typing import Any

import pytest

from .cluster import SYSTEM, get, items, keys, kubectl, s3, wait
from .conftest import Jobs

# Long enough that a pod can be caught in the middle: 5 epochs of 57 rows in steps of 4.
LONG = {"epochs": 8, "learningRate": "1e-3", "maxLength": 256, "effectiveBatchSize": 4, "evalSteps": 50}


def committed(jobs: Jobs) -> list[int]:
    """Steps of the checkpoints that are complete in S3."""
    found = [k for k in keys("finetune", f"{jobs.prefix()}/checkpoints/") if k.endswith("/manifest.json")]
    return sorted(int(k.split("/checkpoint-")[1].split("/")[0]) for k in found)


def metrics(jobs: Jobs) -> list[dict[str, Any]]:
    body = s3().get_object(Bucket="finetune", Key=f"{jobs.prefix()}/report/metrics.jsonl")["Body"].read()
    return [json.loads(line) for line in body.decode().splitlines()]


def train_pod(jobs: Jobs) -> str:
    pods = [
        p
        for p in items("pods", jobs.namespace, "finetune.dev/step=Train")
        if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]
    ]
    return str(pods[0]["metadata"]["name"]) if pods else ""


def evict(namespace: str, pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    kubectl("create", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", "-f", "-", text=json.dumps(body))


@pytest.mark.parametrize("how", [pytest.param("deleted", marks=pytest.mark.long), pytest.param("evicted", marks=pytest.mark.long), "killed"])
def test_a_training_pod_that_goes_in_mid_run_costs_no_committed_step(jobs: Jobs, how: str) -> None:
    jobs.submit(training=LONG)
    wait("a checkpoint in S3", lambda: committed(jobs), 180)
    pod = train_pod(jobs)
    if how == "deleted":
        kubectl("-n", jobs.namespace, "delete", "pod", pod, "--wait=false")
    elif how == "evicted":
        evict(jobs.namespace, pod)
    else:
        kubectl("-n", jobs.namespace, "delete", "pod", pod, "--grace-period=0", "--force")
    known = committed(jobs)[-1]
    status = jobs.phase("Succeeded", 300)
    steps = [m["step"] for m in metrics(jobs) if "loss" in m]
    assert steps == sorted(set(steps)), "a step is there twice"
    assert steps == list(range(1, status["progress"]["totalSteps"] + 1)), "a step is missing"
    last = [a for a in status["attempts"] if a["step"] == "Train"][-1]
    assert last["resumedFrom"] >= known
    if how != "killed":
        assert status["interruptions"] == 1
        assert not status.get("failures")


def owned(namespace: str) -> list[str]:
    found = items("jobs,pods,configmaps,deployments,services,modelendpoints", namespace)
    return [f"{o['kind']}/{o['metadata']['name']}" for o in found if o["metadata"]["name"] != "kube-root-ca.crt"]


@pytest.mark.parametrize("operator", [pytest.param("running", marks=pytest.mark.long), "scaled to zero"])
def test_deleting_a_job_takes_its_children_and_leaves_its_artefacts(jobs: Jobs, operator: str) -> None:
    jobs.submit(training={**LONG, "epochs": 1}, inference={"engine": "Swift", "resources": {"cpu": "250m", "memory": "3Gi", "scratch": "5Gi"}})
    jobs.phase("Succeeded", 240)
    prefix = jobs.prefix()
    before = set(keys("finetune", prefix))
    assert any(k.endswith("adapter/manifest.json") for k in before)
    if operator == "scaled to zero":
        kubectl("-n", SYSTEM, "scale", "deployment/finetune-operator", "--replicas=0")
        wait("the operator is gone", lambda: not items("pods", SYSTEM, "app.kubernetes.io/name=finetune-operator"), 60)
    try:
        kubectl("-n", jobs.namespace, "delete", "finetunejob", "job", "--timeout=30s")
        wait("no child is left", lambda: not owned(jobs.namespace), 120)
    finally:
        kubectl("-n", SYSTEM, "scale", "deployment/finetune-operator", "--replicas=1")
        kubectl("-n", SYSTEM, "rollout", "status", "deployment/finetune-operator", "--timeout=120s")
    assert set(keys("finetune", prefix)) == before


def test_an_operator_that_restarts_in_mid_run_changes_nothing(jobs: Jobs) -> None:
    jobs.submit(training=LONG)
    jobs.until(lambda s: (s.get("progress") or {}).get("step"), 180)
    pod = train_pod(jobs)
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/name=finetune-operator", "--wait=false")
    status = jobs.phase("Succeeded", 300)
    assert [a["pod"] for a in status["attempts"] if a["step"] == "Train"] == [pod]
    assert status["interruptions"] == 0


def test_a_suspended_job_frees_its_gpu_and_goes_on_where_it_was(jobs: Jobs) -> None:
    jobs.submit(training=LONG)
    wait("a checkpoint in S3", lambda: committed(jobs), 180)
    kubectl("-n", jobs.namespace, "patch", "finetunejob", "job", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    jobs.phase("Suspended", 120)
    assert not train_pod(jobs)
    known = committed(jobs)[-1]
    kubectl("-n", jobs.namespace, "patch", "finetunejob", "job", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    status = jobs.phase("Succeeded", 300)
    assert [a["resumedFrom"] for a in status["attempts"] if a["step"] == "Train"] == [known]
    assert get("finetunejob", "job", jobs.namespace)["status"]["phase"] == "Succeeded"
