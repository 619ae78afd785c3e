"""Jobs in a queue of the real Kueue that has quota for one GPU, on a node that offers one."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .cluster import DEVCLUSTER, SYSTEM, apply, get, items, kubectl, wait
from .conftest import Jobs
from .test_survival import LONG, committed, metrics

KUEUE = "kueue.x-k8s.io/v1beta2"
QUEUE = {"name": "training"}
POOL = {"e2e.finetune.dev/pool": "training"}  # the flavor's label: Kueue puts it into the nodeSelector of what it admits
QUOTA = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "1"}
UNDER_WAY = ("Pending", "Running")
pytestmark = pytest.mark.timeout(1200)  # the first one also waits until Kueue is built
# 1,200 steps, so that another job's data can be checked while this one still trains: a fast machine makes 15 a second.
LONGER: dict[str, Any] = {"training": {**LONG, "epochs": 80, "evalSteps": 200}, "checkpoints": {"everySteps": 20}, "queue": QUEUE}


def kueue_object(kind: str, name: str, spec: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    return {"apiVersion": KUEUE, "kind": kind, "metadata": {"name": name, **({"namespace": namespace} if namespace else {})}, "spec": spec}


def restart_operator() -> None:
    kubectl("-n", SYSTEM, "rollout", "restart", "deployment/finetune-operator")
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/finetune-operator", "--timeout=120s")


@pytest.fixture(scope="module")
def kueue() -> Iterator[None]:
    """Kueue while these tests run, with one ClusterQueue; afterwards the cluster is as it was."""
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]
    name, gpus = node["metadata"]["name"], node["status"]["capacity"].get("nvidia.com/gpu", "0")
    subprocess.run([str(DEVCLUSTER / "kueue")], check=True)
    try:
        subprocess.run([str(DEVCLUSTER / "gpus"), "1"], check=True)
        kubectl("label", "node", name, *(f"{k}={v}" for k, v in POOL.items()))
        flavor = {"name": "training", "resources": [{"name": k, "nominalQuota": v} for k, v in QUOTA.items()]}
        cluster_queue = {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": list(QUOTA), "flavors": [flavor]}],
        }
        apply(
            kueue_object("ResourceFlavor", "training", {"nodeLabels": POOL}),
            kueue_object("ClusterQueue", "training", cluster_queue),
            {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": "high"}, "value": 1000},
        )
        yield  # the operator notices Kueue by itself when the first job waits for it
    finally:
        kubectl("label", "node", name, *(f"{k}-" for k in POOL))
        subprocess.run([str(DEVCLUSTER / "gpus"), gpus], check=True)
        subprocess.run([str(DEVCLUSTER / "kueue"), "--down"], check=True)
        restart_operator()


@pytest.fixture
def queued(kueue: None, jobs: Jobs) -> Jobs:
    """Jobs of a namespace that Kueue manages, with a LocalQueue `training`."""
    kubectl("label", "namespace", jobs.namespace, "kueue-managed=true")
    apply(kueue_object("LocalQueue", "training", {"clusterQueue": "training"}, jobs.namespace))
    return jobs


class TrainingPods:
    """Phases of a namespace's training pods at every moment, as the API server tells them."""

    def __init__(self, stream: Any) -> None:
        self.moments: list[dict[str, str]] = [{}]
        self._stream = stream

    def follow(self) -> None:
        """Read until the stream ends."""
        for line in self._stream:
            kind, name, phase = line.split()
            now = {pod: known for pod, known in self.moments[-1].items() if pod != name}
            self.moments.append(now if kind == "DELETED" else {**now, name: phase})

    def jobs(self, *phases: str) -> set[frozenset[str]]:
        """The FineTuneJobs that had pods in one of these phases, for each moment at which any had."""
        at_once = (frozenset(pod.rsplit("-train-", 1)[0] for pod, phase in moment.items() if phase in phases) for moment in self.moments)
        return {found for found in at_once if found}


@contextmanager
def watching(namespace: str) -> Iterator[TrainingPods]:
    """Watch the training pods of a namespace without a gap."""
    columns = '{.type} {.object.metadata.name} {.object.status.phase}{"\\n"}'
    command = [str(DEVCLUSTER / "kubectl"), "-n", namespace, "get", "pods", "-l", "finetune.dev/step=Train"]
    # A process group of its own: the script and the kubectl that it has started end together.
    with subprocess.Popen(
        [*command, "--watch", "--output-watch-events", "-o", f"jsonpath={columns}"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        pods = TrainingPods(process.stdout)
        thread = threading.Thread(target=pods.follow)
        thread.start()
        try:
            yield pods
            assert process.poll() is None, "the watch of the pods ended early"
        finally:
            subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
            thread.join()


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def kubernetes_job(jobs: Jobs, name: str, step: str = "Train") -> dict[str, Any]:
    """The newest Kubernetes Job of a step; empty when there is none."""
    found = items("jobs", jobs.namespace, f"finetune.dev/job={name},finetune.dev/step={step}")
    return dict(max(found, key=lambda j: int(j["metadata"]["labels"]["finetune.dev/attempt"]), default={}))


def workload(jobs: Jobs, name: str) -> dict[str, Any]:
    """Kueue's Workload of the training; empty when there is none."""
    uid = kubernetes_job(jobs, name).get("metadata", {}).get("uid", "none")
    return next(iter(items("workloads.kueue.x-k8s.io", jobs.namespace, f"kueue.x-k8s.io/job-uid={uid}")), {})


def waits_as_kueue_says(jobs: Jobs, name: str, seconds: float = 120) -> dict[str, Any]:
    """Status once the job is Queued with the reason and message of its Workload. They are compared again and again: Kueue may change its mind in between."""

    def look() -> dict[str, Any]:
        status = jobs.status(name)
        ours, theirs = condition(status, "QuotaReserved"), condition(workload(jobs, name).get("status", {}), "QuotaReserved")
        said = [(c.get("status"), c.get("reason"), c.get("message")) for c in (ours, theirs)]
        return status if status.get("phase") == "Queued" and said[0] == said[1] and said[0][0] == "False" else {}

    return wait(f"{name} is Queued and repeats what Kueue says", look, seconds)


def trains(jobs: Jobs, name: str, seconds: float = 120) -> None:
    jobs.until(lambda s: s.get("phase") == "Training" and (s.get("progress") or {}).get("step"), seconds, name, "a step reported while training")


def suspend(jobs: Jobs, name: str, wanted: bool) -> None:
    kubectl("-n", jobs.namespace, "patch", "finetunejob", name, "--type=merge", "-p", json.dumps({"spec": {"suspend": wanted}}))


def last_attempt(status: dict[str, Any]) -> dict[str, Any]:
    return dict([a for a in status["attempts"] if a["step"] == "Train"][-1])


def test_two_jobs_share_one_gpu_one_after_the_other(queued: Jobs) -> None:
    with watching(queued.namespace) as pods:
        queued.submit("first", **LONGER)
        wait("the first one has the quota", lambda: condition(workload(queued, "first").get("status", {}), "Admitted").get("status") == "True", 180)
        queued.submit("second", queue=QUEUE)
        waiting = waits_as_kueue_says(queued, "second")
        assert "nvidia.com/gpu" in waiting["message"]
        assert kubernetes_job(queued, "second")["spec"]["suspend"] is True
        assert kubernetes_job(queued, "second")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
        prepare = kubernetes_job(queued, "second", "Prepare")
        assert not [label for label in prepare["metadata"]["labels"] if label.startswith("kueue")], "checking the data needs no quota"
        queued.phase("Succeeded", 420, "first")
        status = queued.phase("Succeeded", 240, "second")
    assert pods.jobs(*UNDER_WAY) == {frozenset({"first"}), frozenset({"second"})}
    assert condition(status, "QuotaReserved")["status"] == "True"
    assert (status["interruptions"], last_attempt(status)["number"]) == (0, 1)


def test_a_job_of_high_priority_takes_the_gpu_over_and_costs_the_other_nothing_but_time(queued: Jobs) -> None:
    with watching(queued.namespace) as pods:
        queued.submit("job", **LONGER)
        wait("a checkpoint in S3", lambda: committed(queued), 180)
        queued.submit("urgent", queue={**QUEUE, "priorityClass": "high"})
        status = waits_as_kueue_says(queued, "job")
        known = committed(queued)[-1]
        assert not status.get("failures")
        assert last_attempt(status)["interruptedBy"] == "Preempted"
        assert kubernetes_job(queued, "urgent")["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
        queued.phase("Succeeded", 240, "urgent")
        status = queued.phase("Succeeded", 300, "job")
    # Kueue gives the quota away as soon as the old pod has been told to end. The new one then waits for the GPU itself.
    assert pods.jobs("Running") == {frozenset({"job"}), frozenset({"urgent"})}
    assert (last_attempt(status)["number"], last_attempt(status)["resumedFrom"]) == (1, known)
    assert status["interruptions"] == 1
    assert not status.get("failures")
    steps = [m["step"] for m in metrics(queued) if "loss" in m]
    assert steps == list(range(1, status["progress"]["totalSteps"] + 1)), "a step is missing or there twice"


def test_what_kueue_wrote_into_the_job_at_its_admission_stays(queued: Jobs) -> None:
    queued.submit("job", queue=QUEUE)
    trains(queued, "job")
    admitted = kubernetes_job(queued, "job")
    assert admitted["spec"]["template"]["spec"]["nodeSelector"] == POOL
    kubectl("-n", queued.namespace, "annotate", "finetunejob", "job", "e2e.finetune.dev/round=another")
    restart_operator()
    status = queued.phase("Succeeded", 240, "job")
    assert kubernetes_job(queued, "job")["spec"] == admitted["spec"]
    assert kubernetes_job(queued, "job")["metadata"]["generation"] == admitted["metadata"]["generation"]
    pod = get("pod", last_attempt(status)["pod"], queued.namespace)
    assert pod["spec"]["nodeSelector"] == POOL


def test_a_suspended_job_gives_its_quota_back_and_queues_again_when_it_goes_on(queued: Jobs) -> None:
    queued.submit("job", **LONGER)
    wait("a checkpoint in S3", lambda: committed(queued), 180)
    queued.submit("other", **LONGER)
    waits_as_kueue_says(queued, "other")

    suspend(queued, "other", True)
    queued.phase("Suspended", 60, "other")
    assert workload(queued, "other")["spec"]["active"] is False

    suspend(queued, "job", True)
    queued.phase("Suspended", 120, "job")
    selector = "finetune.dev/job=job,finetune.dev/step=Train"
    assert not [p for p in items("pods", queued.namespace, selector) if p["status"]["phase"] in UNDER_WAY], "Suspended while a pod runs"
    assert workload(queued, "job")["spec"]["active"] is False
    known = committed(queued)[-1]

    suspend(queued, "other", False)
    trains(queued, "other")
    suspend(queued, "job", False)
    waits_as_kueue_says(queued, "job")
    assert workload(queued, "job")["spec"]["active"] is True
    queued.phase("Succeeded", 240, "other")
    status = queued.phase("Succeeded", 300, "job")
    assert last_attempt(status)["resumedFrom"] == known
    assert (status["interruptions"], status.get("failures") or {}) == (0, {}), "what the user stops is neither"
