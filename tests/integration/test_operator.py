"""The operator against a real API server and the real Job controller; the tests stand in for the kubelet only."""

import json
import signal

from tests.integration.job import PREPARED, TRAINED, finetunejob, phase, prepared, reason
from tests.integration.operator_process import Namespace, Operator, wait


def test_from_apply_to_a_served_version(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(inference={}))
    pod = here.pod("Prepare")
    assert pod["spec"]["automountServiceAccountToken"] is False
    here.run(pod["metadata"]["name"])
    assert reason(here, "Running")["phase"] == "Preparing"
    here.end(pod["metadata"]["name"], 0, PREPARED)
    train = here.pod("Train")
    assert train["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    here.run(train["metadata"]["name"])
    phase(here, "Training")
    here.end(train["metadata"]["name"], 0, TRAINED)
    phase(here, "Deploying")
    serving = wait("a serving pod", lambda: here.items("pods", "finetune.dev/endpoint=support"))[0]
    assert serving["spec"]["initContainers"][0]["args"] == ["fetch"]
    here.run(serving["metadata"]["name"])
    status = phase(here, "Succeeded")
    assert status["endpoint"]["url"].startswith("http://support.")
    service = here.get("service", "support")
    assert service["spec"]["selector"]["finetune.dev/version"] == here.get("modelendpoint", "support")["status"]["versions"][0]["name"]
    assert "Warning" not in {e["type"] for e in here.items("events") if e["involvedObject"]["kind"] == "FineTuneJob"}


def test_nothing_on_the_object_keeps_it_from_being_deleted_while_the_operator_is_down(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    here.pod("Prepare")
    operator.stop(signal.SIGKILL)
    meta = here.get("finetunejob", "support")["metadata"]
    assert "finalizers" not in meta
    assert all("kopf" not in key for key in meta.get("annotations", {}))
    here.kubectl("delete", "finetunejob", "support", "--timeout=10s")
    wait("no Job and no ConfigMap is left", lambda: not [o for o in here.items("jobs,configmaps") if "support" in o["metadata"]["name"]])


def test_a_crash_is_tried_again_within_the_limit_and_then_final(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.end(here.pod("Train", 1)["metadata"]["name"], 1, json.dumps({"step": "train", "reason": "TrainingCrashed", "message": "boom"}))
    here.end(here.pod("Train", 2)["metadata"]["name"], 137, "", "OOMKilled")
    status = phase(here, "Failed")
    assert status["reason"] == "HostOutOfMemory"
    assert "spec.resources.memory" in status["message"]
    assert [(a["step"], a["number"], a.get("exitCode")) for a in status["attempts"]] == [("Prepare", 1, 0), ("Train", 1, 1), ("Train", 2, 137)]
    assert status["failures"] == {"Train": 2}


def test_bad_data_are_final_at_once(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    here.end(here.pod("Prepare")["metadata"]["name"], 21, json.dumps({"step": "prepare", "reason": "DataInvalid", "message": "train.jsonl:7: empty answer"}))
    assert phase(here, "Failed")["message"] == "train.jsonl:7: empty answer"
    assert not here.items("jobs", "finetune.dev/step=Train")


def test_an_interrupted_pod_is_replaced_in_the_same_attempt(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    prepared(here)
    first = here.pod("Train")["metadata"]["name"]
    here.run(first)
    wait("the first pod is recorded", lambda: [a for a in here.status().get("attempts", []) if a.get("pod") == first])
    here.end(first, 10, json.dumps({"step": "train", "reason": "Interrupted", "message": "checkpoint 20 committed"}))
    second = here.pod("Train", not_named=first)["metadata"]["name"]
    here.run(second)
    status = wait("the interruption is counted", lambda: s if (s := here.status()).get("interruptions") else {})
    assert (status["attempt"], status["interruptions"], status["failures"]) == (1, 1, {})


def test_a_waiting_pod_is_explained(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    here.hold(here.pod("Prepare")["metadata"]["name"], "CreateContainerConfigError", 'secret "s3" not found')
    assert '"s3" does not exist' in reason(here, "SecretNotFound")["message"]


def test_a_name_that_is_taken_is_said_and_the_others_object_is_left_alone(operator: Operator, here: Namespace) -> None:
    container = {"name": "main", "image": "x", "command": ["true"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    here.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "support-prep-1"}, "spec": {"suspend": True, "template": template}})
    uid = here.get("job", "support-prep-1")["metadata"]["uid"]
    here.apply(finetunejob())
    assert "Job support-prep-1" in reason(here, "NameConflict")["message"]
    assert here.get("job", "support-prep-1")["metadata"]["uid"] == uid
    here.kubectl("delete", "job", "support-prep-1")
    reason(here, "Starting", seconds=45)
    assert here.pod("Prepare"), "the job goes on once the name is free"


def test_an_operator_killed_at_any_step_goes_on_where_it_was(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    name = here.pod("Prepare")["metadata"]["name"]
    operator.stop(signal.SIGKILL)
    here.end(name, 0, PREPARED)
    operator.start()
    train = here.pod("Train")["metadata"]["name"]
    operator.stop(signal.SIGKILL)
    here.end(train, 0, TRAINED)
    operator.start()
    status = phase(here, "Succeeded")
    assert [(a["step"], a["number"]) for a in status["attempts"]] == [("Prepare", 1), ("Train", 1)]
    assert len(here.items("jobs")) == 2


def test_a_deleted_training_job_is_made_again_and_a_deleted_service_too(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(inference={}))
    prepared(here)
    old = here.pod("Train")["metadata"]["name"]
    here.kubectl("delete", "job", "support-train-1", "--wait=false")
    here.kubectl("delete", "pod", old, "--force", "--grace-period=0", "--wait=false", "--ignore-not-found")
    here.end(here.pod("Train", not_named=old)["metadata"]["name"], 0, TRAINED)
    here.run(wait("a serving pod", lambda: here.items("pods", "finetune.dev/endpoint=support"))[0]["metadata"]["name"])
    phase(here, "Succeeded")
    here.kubectl("delete", "service", "support")
    wait("the service again", lambda: here.get("service", "support"))
