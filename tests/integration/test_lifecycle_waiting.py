"""A pod that does not start, and a training that does not fit: what is said, for how long it waits, and how it goes on."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_runtime.contract.model_shape import from_config
from tests.integration.history import History
from tests.integration.job import TRAINED, finetunejob, name_of, phase, prepared, prepared_message, reason
from tests.integration.operator_process import Namespace, Operator, wait
from tests.integration.rest import Rest

Hold = Callable[[Namespace, str], None]


def held(why: str, message: str) -> Hold:
    return lambda here, pod: here.hold(pod, why, message)


def unschedulable(message: str) -> Hold:
    return lambda here, pod: here.unschedulable(pod, message)


NO_IMAGE = held("ImagePullBackOff", 'Back-off pulling image "trainer:test"')
NO_SECRET = held("CreateContainerConfigError", 'secret "s3" not found')
NO_NODE = unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
NO_CLAIM = unschedulable('persistentvolumeclaim "scratch" not found')
WAITING = [
    pytest.param(NO_IMAGE, "ImagePullFailed", "imagePullSecrets", id="an image that cannot be pulled"),
    pytest.param(NO_SECRET, "SecretNotFound", 'Secret "s3" does not exist', id="a Secret that is missing"),
    pytest.param(NO_NODE, "Unschedulable", "3 Insufficient nvidia.com/gpu", id="no node with a GPU"),
    pytest.param(NO_CLAIM, "VolumeNotFound", 'PersistentVolumeClaim "scratch" does not exist', id="a volume that is missing"),
]


@pytest.mark.parametrize(("hold", "word", "says"), WAITING)
def test_a_pod_that_does_not_start_in_time_fails_the_job_with_what_is_missing(
    operator: Operator, here: Namespace, history: History, hold: Hold, word: str, says: str
) -> None:
    here.apply(finetunejob(schedulingTimeoutSeconds=4))
    prepared(here)
    pod = name_of(here.pod("Train"))
    hold(here, pod)
    assert says in reason(here, word)["message"]
    status = phase(here, "Failed")
    assert status["reason"] == word
    assert says in status["message"]
    assert "waited 4 s, as spec.schedulingTimeoutSeconds says" in status["message"]
    assert status["attempt"] == 1
    wait("no pod waits any longer", lambda: not here.items("pods", "finetune.dev/step=Train"))
    assert history.milestones()[-2:] == [f"Training {word}", f"Failed {word}"]


@pytest.mark.parametrize(("hold", "word", "says"), WAITING)
def test_what_is_missing_may_come_later_and_the_job_goes_on(operator: Operator, here: Namespace, history: History, hold: Hold, word: str, says: str) -> None:
    here.apply(finetunejob())
    pod = name_of(here.pod("Prepare"))
    hold(here, pod)
    assert says in reason(here, word)["message"]
    here.run(pod)
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    status = phase(here, "Succeeded")
    assert [a["number"] for a in status["attempts"]] == [1, 1]
    assert history.milestones()[0] == f"Preparing {word}"


def test_a_job_that_the_cluster_does_not_take_is_named_and_goes_on_when_it_does(operator: Operator, here: Namespace) -> None:
    here.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs"}, "spec": {"hard": {"count/jobs.batch": "0"}}})
    wait("the quota is in force", lambda: here.get("resourcequota", "no-jobs").get("status", {}).get("used"))
    here.apply(finetunejob())
    status = wait("what is refused", lambda: found if (found := here.status()).get("reason") == "Refused" else {})
    assert (status["phase"], status.get("attempts", [])) == ("Pending", [])
    assert "Job support-prep-1" in status["message"]
    assert "exceeded quota: no-jobs" in status["message"]
    here.rest.delete("resourcequota", "no-jobs")
    wait("its pod", lambda: here.items("pods", "finetune.dev/step=Prepare"), 60)
    assert phase(here, "Preparing")["reason"] != "Refused"


def test_pods_that_the_cluster_does_not_take_are_named_and_waited_for_in_time(operator: Operator, here: Namespace) -> None:
    here.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}})
    wait("the quota is in force", lambda: here.get("resourcequota", "no-pods").get("status", {}).get("used"))
    here.apply(finetunejob(schedulingTimeoutSeconds=34))
    status = wait("that no pod comes", lambda: found if (found := here.status()).get("reason") == "PodNotCreated" else {}, 60)
    assert (status["phase"], "kubectl describe job support-prep-1" in status["message"]) == ("Preparing", True)
    status = phase(here, "Failed")
    assert (status["reason"], "waited 34 s" in status["message"]) == ("PodNotCreated", True)
    here.rest.delete("resourcequota", "no-pods")


# --- GPU memory
QWEN3_8B = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
SHAPE = from_config(QWEN3_8B)
assert SHAPE is not None
MEASURED = prepared_message(longest=1000, shape=SHAPE.dump())


def fits(here: Namespace) -> dict[str, Any]:
    return next((c for c in here.status().get("conditions", []) if c["type"] == "Fits"), {})


def no_training(here: Namespace) -> bool:
    time.sleep(1)
    return not here.items("jobs", "finetune.dev/step=Train")


def test_a_training_that_is_too_large_for_the_gpu_is_not_started_unless_somebody_says_so(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob(resources={"gpuMemory": "8Gi"}))
    prepared(here, message=MEASURED)
    status = reason(here, "GPUTooSmall")
    assert status["phase"] == "Pending"
    assert "8.0 GiB (spec.resources.gpuMemory)" in status["message"]
    assert "in a new job" in status["message"] or "GPU with more memory" in status["message"]
    assert status["estimate"]["available"] == "8192Mi"
    assert {c["type"] for c in status["conditions"]} & {"Stalled", "Reconciling"} == {"Stalled"}
    assert no_training(here)
    here.kubectl("annotate", "finetunejob", "support", "finetune.dev/ignore-gpu-fit=true")
    train = here.pod("Train")
    assert "affinity" not in train["spec"], "it may run anywhere: nobody believes the estimate"
    here.end(name_of(train), 0, TRAINED)
    phase(here, "Succeeded")
    assert fits(here)["reason"] == "FitIgnored"
    assert [line for line in history.milestones() if line != "Training Running"] == ["Pending GPUTooSmall", "Succeeded Completed"]


@pytest.fixture
def gpu_node(rest: Rest) -> Iterator[Callable[[str, int], str]]:
    """Makes a node with one GPU: (extended resource, MiB of its memory) -> the node's name."""
    made: list[str] = []

    def make(resource: str, mebibytes: int) -> str:
        name = f"gpu-{len(made)}-{rest.namespace}"
        rest.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {f"{resource}.memory": str(mebibytes)}}})
        rest.merge("nodes", name, {"status": {"allocatable": {resource: "1"}, "capacity": {resource: "1"}}}, "status")
        made.append(name)
        return name

    yield make
    for name in made:
        rest.delete("nodes", name)


def test_the_largest_gpu_of_the_cluster_decides_and_smaller_ones_are_kept_off(operator: Operator, here: Namespace, gpu_node: Callable[[str, int], str]) -> None:
    gpu_node("example.org/a", 8192)
    large = gpu_node("example.org/a", 81559)
    here.apply(finetunejob(resources={"gpuResource": "example.org/a"}))
    prepared(here, message=MEASURED)
    train = here.pod("Train")
    enough, silent = train["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    least = enough["matchExpressions"][0]
    assert (least["key"], least["operator"]) == ("example.org/a.memory", "Gt")
    assert 8192 < int(least["values"][0]) < 81559
    assert silent["matchExpressions"] == [{"key": "example.org/a.memory", "operator": "DoesNotExist"}]
    condition = wait("the fit is stated", lambda: fits(here))
    assert (condition["status"], condition["reason"]) == ("True", "Fits")
    assert f"(node {large})" in condition["message"]


def test_a_node_that_is_too_small_is_named(operator: Operator, here: Namespace, gpu_node: Callable[[str, int], str]) -> None:
    small = gpu_node("example.org/b", 8192)
    here.apply(finetunejob(resources={"gpuResource": "example.org/b"}))
    prepared(here, message=MEASURED)
    assert f"8.0 GiB (node {small})" in reason(here, "GPUTooSmall")["message"]
    assert no_training(here)


def test_a_cluster_that_says_nothing_of_its_gpus_holds_nobody_up(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(resources={"gpuResource": "example.org/c"}))
    prepared(here, message=MEASURED)
    here.pod("Train")
    condition = wait("the fit is stated", lambda: fits(here))
    assert (condition["status"], condition["reason"]) == ("Unknown", "GPUMemoryUnknown")
    assert "set spec.resources.gpuMemory" in condition["message"]
