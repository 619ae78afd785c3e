"""What may change on a FineTuneJob that exists: a run's inputs are fixed, how it runs is not."""

import json
from typing import Any

import pytest

from finetune_operator.build.endpoint import proposal
from finetune_operator.names import candidate_manager
from tests.integration.kubectl import Kubectl, merge
from tests.integration.test_api_refusals import ENDPOINT, JOB

GIVEN = {
    "resources": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "tuning": {"lora": {"rank": 16}},
    "training": {"microBatchSize": 2},
    "inference": {"replicas": 1},
}


@pytest.fixture(scope="module")
def job(kubectl: Kubectl) -> str:
    kubectl("create", "-f", "-", stdin=merge(JOB, {"spec": GIVEN}))
    return "finetunejob/support"


FIXED = [
    pytest.param({"model": {"source": "hf://Qwen/Qwen3-4B"}}, "model", id="the model"),
    pytest.param({"model": {"revision": "v2"}}, "model", id="the model's revision"),
    pytest.param({"model": {"secretRef": {"name": "other"}}}, "model", id="a Secret that was not there"),
    pytest.param({"dataset": {"train": [{"source": "s3://datasets/other.jsonl"}]}}, "dataset", id="the data"),
    pytest.param({"dataset": {"system": "Be kind."}}, "dataset", id="the system prompt"),
    pytest.param({"tuning": {"lora": {"rank": 32}}}, "tuning", id="the rank"),
    pytest.param({"training": {"learningRate": "1e-4"}}, "training", id="the learning rate, defaulted so far"),
    pytest.param({"training": {"microBatchSize": "2"}}, "training", id="the micro-batch, as a text"),
    pytest.param({"resources": {"memory": "32Gi"}}, "resources", id="the memory"),
    pytest.param({"resources": {"nodeSelector": {"pool": "cpu"}}}, "resources", id="a label in a map"),
    pytest.param({"resources": {"tolerations": [{"key": "cpu", "operator": "Exists"}]}}, "resources", id="a toleration, whose fields have no schema"),
    pytest.param({"storage": {"s3": {"uri": "s3://models/other"}}}, "storage", id="the bucket"),
    pytest.param({"checkpoints": {"everySteps": 1}}, "checkpoints", id="the checkpoints"),
    pytest.param({"inference": {"replicas": 2}}, "inference", id="the endpoint's replicas, which are the endpoint's now"),
    pytest.param({"inference": None}, "inference", id="an endpoint taken away"),
]


@pytest.mark.parametrize(("change", "section"), FIXED)
def test_an_input_of_the_run_cannot_change(kubectl: Kubectl, job: str, change: dict[str, Any], section: str) -> None:
    said = kubectl.refused("patch", job, "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": change}))

    assert f"spec.{section} is immutable: a run's inputs are fixed: create a new FineTuneJob for another run" in said


def test_an_endpoint_cannot_be_added_later(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=merge(JOB, {"metadata": {"name": "adapter-only"}}))

    said = kubectl.refused("patch", "finetunejob/adapter-only", "--dry-run=server", "--type=merge", "-p", '{"spec": {"inference": {}}}')

    assert "spec.inference is immutable" in said


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"suspend": True}, id="suspend"),
        pytest.param({"retries": {"limit": 5}}, id="more retries"),
        pytest.param({"retries": {"backoffSeconds": 5}}, id="faster retries"),
        pytest.param({"suspend": True, "retries": {"limit": 0}}, id="both at once"),
        pytest.param({"activeDeadlineSeconds": 600}, id="a deadline that was not there"),
        pytest.param({"schedulingTimeoutSeconds": 600}, id="how long it waits for a node"),
    ],
)
def test_how_it_runs_can_change(kubectl: Kubectl, job: str, change: dict[str, Any]) -> None:
    patched = kubectl.json("patch", job, "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": change}))

    assert merge(patched["spec"], change) == patched["spec"]
    assert patched["metadata"]["generation"] == kubectl.json("get", job)["metadata"]["generation"] + 1


def test_applying_the_same_manifest_again_changes_nothing(kubectl: Kubectl, job: str) -> None:
    before = kubectl.json("get", job)["metadata"]["generation"]

    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=merge(JOB, {"spec": GIVEN}))

    assert kubectl.json("get", job)["metadata"]["generation"] == before


def test_a_status_is_written_through_its_subresource_alone_and_moves_no_generation(kubectl: Kubectl, job: str) -> None:
    before = kubectl.json("get", job)["metadata"]["generation"]

    kubectl("patch", job, "--type=merge", "-p", '{"status": {"phase": "Ignored"}}')
    kubectl("patch", job, "--type=merge", "--subresource=status", "-p", '{"status": {"phase": "Training"}, "spec": {"suspend": true}}')

    after = kubectl.json("get", job)
    assert (after["status"], after["spec"]["suspend"]) == ({"observedGeneration": -1, "phase": "Training"}, False)
    assert after["metadata"]["generation"] == before


def test_two_writers_share_the_conditions(kubectl: Kubectl, job: str) -> None:
    def condition(kind: str) -> dict[str, Any]:
        entry = {"type": kind, "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
        return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "support"}, "status": {"conditions": [entry]}}

    for manager, kind in (("one", "Trained"), ("two", "DataReady")):
        kubectl("apply", "--server-side", "--subresource=status", f"--field-manager={manager}", "-f", "-", stdin=condition(kind))

    assert {entry["type"] for entry in kubectl.json("get", job)["status"]["conditions"]} == {"Trained", "DataReady"}


def test_a_candidate_can_be_proposed_without_owning_the_endpoint(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "--field-manager=user", "-f", "-", stdin=merge(ENDPOINT, {"spec": {"replicas": 2}}))
    adapter = {"uri": "s3://models/a", "manifestSha256": "0" * 64}
    proposal = {key: ENDPOINT[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": {"candidate": {"job": "support", "adapter": adapter}}}

    kubectl("apply", "--server-side", "--field-manager=finetune-operator-candidate", "-f", "-", stdin=proposal)
    kubectl("apply", "--server-side", "--field-manager=user", "-f", "-", stdin=merge(ENDPOINT, {"spec": {"replicas": 3}}))

    spec = kubectl.json("get", "modelendpoint/support")["spec"]
    assert (spec["replicas"], spec["candidate"]["adapter"]) == (3, adapter)


def test_proposals_under_several_names_stand_beside_each_other_and_each_is_replaced_whole(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "--field-manager=user", "-f", "-", stdin=merge(ENDPOINT, {"metadata": {"name": "desk"}}))

    def propose(name: str, letter: str, **fields: Any) -> None:
        version = {"job": letter, "adapter": {"uri": f"s3://models/{letter}", "manifestSha256": letter * 64}, **fields}
        manager = f"--field-manager={candidate_manager(name)}"
        kubectl("apply", "--server-side", manager, "-f", "-", stdin=proposal(kubectl.namespace, "desk", version, name))

    for name, letter in (("", "a"), ("rooms", "b"), ("bills", "c")):
        propose(name, letter, evalLoss="0.5")
    propose("rooms", "d")
    kubectl("apply", "--server-side", "--field-manager=user", "-f", "-", stdin=merge(ENDPOINT, {"metadata": {"name": "desk"}, "spec": {"replicas": 3}}))

    spec = kubectl.json("get", "modelendpoint/desk")["spec"]
    found = {entry["name"]: (entry["job"], entry.get("evalLoss")) for entry in spec["adapters"]}
    assert (spec["candidate"]["job"], found) == ("a", {"rooms": ("d", None), "bills": ("c", "0.5")})
