"""What users read back: defaults, columns, explanations, scale; and the samples as the API server sees them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.modelendpoint import ModelEndpointSpec
from tests.integration.kubectl import Kubectl, merge
from tests.integration.test_api_refusals import ENDPOINT, JOB

SAMPLES = sorted((Path(__file__).resolve().parents[2] / "manifests/samples").glob("*.yaml"))

JOB_STATUS = {
    "observedGeneration": 1,
    "phase": "Training",
    "reason": "Running",
    "message": "step 132 of 480",
    "attempt": 2,
    "progress": {"step": 132, "totalSteps": 480, "percent": 27, "loss": "1.0832", "evalLoss": "1.2"},
    "display": {"step": "132/480", "eta": "14m"},
    "endpoint": {"name": "support", "url": "http://support.ml.svc.cluster.local/v1"},
    "artifact": {"adapter": {"uri": "s3://models/a", "manifestSha256": "0" * 64}, "step": 132},
    "conditions": [{"type": "Succeeded", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
}
ENDPOINT_STATUS = {
    "observedGeneration": 1,
    "url": "http://support.ml.svc.cluster.local/v1",
    "reason": "Serving",
    "readyReplicas": 2,
    "replicas": 3,
    "selector": "finetune.dev/endpoint=support",
    "versions": [
        {"name": "support-new", "role": "Candidate", "job": "second", "adapter": {"uri": "s3://models/b", "manifestSha256": "1" * 64}},
        {"name": "support-old", "role": "Current", "job": "first", "adapter": {"uri": "s3://models/a", "manifestSha256": "0" * 64}},
    ],
    "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
}


@pytest.fixture(scope="module")
def job(kubectl: Kubectl) -> str:
    kubectl("create", "-f", "-", stdin=merge(JOB, {"spec": {"inference": {}}}))
    kubectl("patch", "finetunejob/support", "--subresource=status", "--type=merge", "-p", json.dumps({"status": JOB_STATUS}))
    return "finetunejob/support"


@pytest.fixture(scope="module")
def endpoint(kubectl: Kubectl) -> str:
    kubectl("create", "-f", "-", stdin=ENDPOINT)
    kubectl("patch", "modelendpoint/support", "--subresource=status", "--type=merge", "-p", json.dumps({"status": ENDPOINT_STATUS}))
    return "modelendpoint/support"


def as_created(kubectl: Kubectl, **change: Any) -> dict[str, Any]:
    """What the API server would make of a job; nothing is created."""
    created: dict[str, Any] = kubectl.json("create", "--dry-run=server", "-f", "-", stdin=merge(JOB, {"metadata": {"name": "another"}} | change))
    return created


def row(kubectl: Kubectl, *arguments: str) -> dict[str, str]:
    """The only row of `kubectl get`, by column. Columns are cut where their headings begin: cells may hold spaces."""
    heading, line = kubectl("get", *arguments).rstrip("\n").split("\n")
    names = heading.split()
    starts = [heading.index(f"{name} " if name != names[-1] else name) for name in names] + [None]
    return {name: line[start:end].strip() for name, start, end in zip(names, starts, starts[1:], strict=False)}


def test_every_default_of_a_job_is_shown_and_is_the_operators(kubectl: Kubectl, job: str) -> None:
    spec = kubectl.json("get", job)["spec"]

    assert spec == FineTuneJobSpec.model_validate(JOB["spec"] | {"inference": {}}).dump()
    assert spec["training"]["learningRate"] == "3e-6", "a text, not a number"


def test_every_default_of_an_endpoint_is_shown_and_is_the_operators(kubectl: Kubectl, endpoint: str) -> None:
    assert kubectl.json("get", endpoint)["spec"] == ModelEndpointSpec.model_validate(ENDPOINT["spec"]).dump()


def test_fields_beside_a_given_one_keep_their_defaults(kubectl: Kubectl) -> None:
    given: dict[str, Any] = {"tuning": {"quantization": {"bits": 8}, "lora": {"rank": 8}}, "resources": {"cpu": 2}}

    spec = as_created(kubectl, spec=given)["spec"]

    assert spec["tuning"]["quantization"] == {"bits": 8, "type": "nf4", "doubleQuant": True, "computeDtype": "bfloat16"}
    assert (spec["tuning"]["lora"]["alpha"], spec["resources"]["cpu"], spec["resources"]["memory"]) == (128, 2, "16Gi")


def test_a_new_object_says_that_nobody_has_seen_it(kubectl: Kubectl) -> None:
    assert as_created(kubectl, status={"phase": "Succeeded"})["status"] == {"observedGeneration": -1}


def test_columns_of_a_job(kubectl: Kubectl, job: str) -> None:
    columns = row(kubectl, "ftj")

    assert {name: text for name, text in columns.items() if name != "AGE"} == {
        "NAME": "support",
        "PHASE": "Training",
        "STEP": "132/480",
        "LOSS": "1.0832",
        "ETA": "14m",
        "ATTEMPT": "2",
        "REASON": "Running",
        "ENDPOINT": "http://support.ml.svc.cluster.local/v1",
    }
    assert columns["AGE"]
    wide = row(kubectl, "ftj", "-o", "wide")
    assert {name: wide[name] for name in ("MODEL", "EVAL-LOSS", "ADAPTER", "MESSAGE")} == {
        "MODEL": "hf://Qwen/Qwen3-8B",
        "EVAL-LOSS": "1.2",
        "ADAPTER": "s3://models/a",
        "MESSAGE": "step 132 of 480",
    }


def test_columns_of_an_endpoint_show_the_version_with_the_traffic(kubectl: Kubectl, endpoint: str) -> None:
    columns = row(kubectl, "mep")

    assert {name: text for name, text in columns.items() if name != "AGE"} == {
        "NAME": "support",
        "READY": "True",
        "REASON": "Serving",
        "REPLICAS": "2",
        "VERSION": "support-old",
        "JOB": "first",
        "URL": "http://support.ml.svc.cluster.local/v1",
    }


def test_both_kinds_answer_to_their_category(kubectl: Kubectl, job: str, endpoint: str) -> None:
    assert kubectl("get", "finetune", "-o", "name").split() == ["finetunejob.finetune.dev/support", "modelendpoint.finetune.dev/support"]


def test_jobs_are_selected_by_model_and_phase_on_the_server(kubectl: Kubectl, job: str) -> None:
    def names(selector: str) -> list[str]:
        return kubectl("get", "ftj", "-o", "name", "--field-selector", selector).split()

    assert names("spec.model.source=hf://Qwen/Qwen3-8B,status.phase=Training") == ["finetunejob.finetune.dev/support"]
    assert names("status.phase=Failed") == []


def test_kubectl_waits_for_conditions(kubectl: Kubectl, job: str, endpoint: str) -> None:
    assert "condition met" in kubectl("wait", job, "--for=condition=Succeeded", "--timeout=5s")
    assert "condition met" in kubectl("wait", endpoint, "--for=condition=Ready", "--timeout=5s")


def test_an_endpoint_scales(kubectl: Kubectl, endpoint: str) -> None:
    kubectl("scale", endpoint, "--replicas=3")

    scale = json.loads(kubectl("get", "--raw", f"/apis/finetune.dev/v1alpha1/namespaces/{kubectl.namespace}/modelendpoints/support/scale"))
    assert scale["spec"]["replicas"] == kubectl.json("get", endpoint)["spec"]["replicas"] == 3
    assert scale["status"] == {"replicas": 3, "selector": "finetune.dev/endpoint=support"}


EXPLAINED = [
    pytest.param("finetunejob.spec.training.maxLength", ["in tokens", "memory grows linearly", "Defaults to 1024."], id="a length in tokens"),
    pytest.param("finetunejob.spec.training.learningRate", ["Peak learning rate", "Defaults to 3e-6."], id="the learning rate"),
    pytest.param("finetunejob.spec.resources.memory", ["in bytes", "An integer or a string.", "Defaults to 16Gi."], id="memory in bytes"),
    pytest.param("finetunejob.spec.resources.cpu", ["CPU cores", "Defaults to 4."], id="cores"),
    pytest.param("finetunejob.spec.retries.backoffSeconds", ["in seconds", "Defaults to 30."], id="a wait in seconds"),
    pytest.param("finetunejob.spec.checkpoints.everySteps", ["Optimizer steps", "Defaults to 100."], id="a distance in steps"),
    pytest.param("finetunejob.spec.tuning.quantization.bits", ["bytes a weight", "Defaults to 4."], id="bytes a weight"),
    pytest.param("finetunejob.spec.model", ["Immutable."], id="what cannot change"),
    pytest.param("finetunejob.spec.resources.nodes", ["training on more than one node is not supported by this version"], id="what this version refuses"),
    pytest.param("finetunejob.status.progress.gpuMemory", ["in GiB"], id="a measured value"),
    pytest.param("modelendpoint.spec.maxLength", ["in tokens", "Defaults to 1024."], id="an endpoint's length in tokens"),
]


@pytest.mark.parametrize(("path", "words"), EXPLAINED)
def test_kubectl_explain_gives_unit_and_default(kubectl: Kubectl, path: str, words: list[str]) -> None:
    text = " ".join(kubectl("explain", path).split())

    assert [word for word in words if word not in text] == []


def test_kubectl_explain_shows_the_whole_tree(kubectl: Kubectl) -> None:
    lines = [line.split() for line in kubectl("explain", "finetunejob.spec", "--recursive").splitlines()]

    for expected in (["learningRate", "<string>"], ["source", "<string>", "-required-"], ["enum:", "QLoRA,", "LoRA"], ["nodeSelector", "<map[string]string>"]):
        assert expected in lines


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_accepted(kubectl: Kubectl, sample: Path) -> None:
    kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(sample))


def test_the_values_that_the_sample_spells_out_for_learning_are_the_defaults(kubectl: Kubectl) -> None:
    sample = yaml.safe_load(next(path for path in SAMPLES if path.stem == "qwen3-8b").read_text())["spec"]
    defaults = as_created(kubectl)["spec"]

    for section in ("tuning", "training", "checkpoints", "retries"):
        assert merge(defaults[section], sample[section]) == defaults[section]
