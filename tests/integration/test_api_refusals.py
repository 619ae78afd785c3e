"""Specs that the API server refuses, each with the field and the words that a user gets to read."""

from typing import Any

import pytest

from tests.integration.kubectl import Kubectl, merge

JOB: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "support"},
    "spec": {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "dataset": {"train": [{"source": "s3://datasets/support/train.jsonl"}]},
        "storage": {"s3": {"uri": "s3://models/finetune"}},
    },
}
ENDPOINT: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "ModelEndpoint",
    "metadata": {"name": "support"},
    "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}, "storage": {"s3": {"uri": "s3://models/finetune"}}},
}
NOT_YET = "is not supported by this version"
SOURCE = "spec.dataset.train[0].source"
BEGINNINGS = "s3://, hf://datasets/, https://, pvc:// or configmap://"


def one_source(uri: str, **fields: Any) -> dict[str, Any]:
    return {"dataset": {"train": [{"source": uri, **fields}]}}


REFUSED_JOBS = [
    # how YAML and typing go wrong
    pytest.param({"training": {"learningRate": 3e-6}}, "spec.training.learningRate", "must be of type string", id="a learning rate without quotes"),
    pytest.param({"training": {"learningRate": "fast"}}, "spec.training.learningRate", "should match", id="a learning rate in words"),
    pytest.param({"training": {"learningRate": "0.0"}}, "spec.training.learningRate", "should match", id="a learning rate of nothing"),
    pytest.param(
        {"training": {"extraArgs": {"warmup_ratio": 0.1}}}, "spec.training.extraArgs.warmup_ratio", "must be of type string", id="an argument without quotes"
    ),
    pytest.param({"training": {"packing": True}}, "spec.training.packing", "must be of type string", id="On without quotes, which YAML reads as true"),
    pytest.param({"training": {"epochs": "3"}}, "spec.training.epochs", "must be of type integer", id="a number in quotes"),
    pytest.param({"training": {"epochs": 1.5}}, "spec.training.epochs", "must be of type integer", id="half an epoch"),
    pytest.param({"tuning": {"lora": {"dropout": "1.5"}}}, "spec.tuning.lora.dropout", "should match", id="a share above 1"),
    pytest.param({"resources": {"memory": "16GB"}}, "spec.resources.memory", "should match", id="a unit that Kubernetes does not know"),
    pytest.param({"resources": {"memory": -1}}, "spec.resources.memory", "greater than or equal to 0", id="less than no memory"),
    pytest.param({"resources": {"cpu": 1.5}}, "spec.resources.cpu", "must be of type integer,string", id="a fraction of cores without quotes"),
    # limits
    pytest.param({"tuning": {"lora": {"rank": 0}}}, "spec.tuning.lora.rank", "greater than or equal to 1", id="an adapter of rank 0"),
    pytest.param({"training": {"earlyStopping": {"patience": 0}}}, "spec.training.earlyStopping.patience", "greater than or equal to 1", id="no patience"),
    pytest.param({"training": {"epochs": 0}}, "spec.training.epochs", "greater than or equal to 1", id="no epoch at all"),
    pytest.param({"training": {"microBatchSize": 0}}, "spec.training.microBatchSize", "greater than or equal to 1", id="an empty micro-batch"),
    pytest.param({"training": {"microBatchSize": "auto"}}, "spec.training.microBatchSize", "should match", id="auto in lower case"),
    pytest.param({"training": {"maxLength": 8}}, "spec.training.maxLength", "greater than or equal to 16", id="rows of 8 tokens"),
    pytest.param({"retries": {"limit": 99}}, "spec.retries.limit", "less than or equal to 20", id="99 retries"),
    pytest.param({"dataset": {"train": []}}, "spec.dataset.train", "at least 1 items", id="no data"),
    pytest.param({"tuning": {"lora": {"targetModules": []}}}, "spec.tuning.lora.targetModules", "at least 1 items", id="an adapter for nothing"),
    # what cannot be without an evaluation
    pytest.param(
        {"dataset": {"validation": {"splitRatio": "0"}}, "training": {"earlyStopping": {}}},
        "spec.training.earlyStopping",
        "training.earlyStopping needs an evaluation loss",
        id="early stopping without validation rows",
    ),
    pytest.param(
        {"dataset": {"validation": {"splitRatio": "0.0"}}, "checkpoints": {"use": "Best"}},
        "spec.checkpoints.use",
        "checkpoints.use needs an evaluation loss",
        id="the best checkpoint without validation rows",
    ),
    # choices
    pytest.param({"tuning": {"method": "DPO"}}, "spec.tuning.method", 'supported values: "QLoRA", "LoRA"', id="an unknown method"),
    pytest.param({"tuning": {"quantization": {"bits": 3}}}, "spec.tuning.quantization.bits", 'supported values: "4", "8"', id="3 bits"),
    pytest.param({"dataset": {"invalidRows": {"policy": "Ignore"}}}, "spec.dataset.invalidRows.policy", '"Reject", "Drop"', id="an unknown row policy"),
    # references
    pytest.param({"model": {"source": "Qwen/Qwen3-8B"}}, "spec.model.source", "a model begins with hf://, s3:// or pvc://", id="a model without its scheme"),
    pytest.param({"model": {"source": "hf://Qwen"}}, "spec.model.source", "write hf://OWNER/NAME", id="a hub model without its owner"),
    pytest.param({"model": {"source": "s3://models"}}, "spec.model.source", "write s3://BUCKET/PREFIX", id="a model in a bucket without its prefix"),
    pytest.param({"model": {"source": "pvc:///qwen3"}}, "spec.model.source", "write pvc://CLAIM/PATH, or CLAIM alone", id="a model on no volume"),
    pytest.param({"model": {"secretRef": {}}}, "spec.model.secretRef.name", "Required value", id="a Secret without a name"),
    pytest.param(one_source("/data/train.jsonl"), SOURCE, f"a dataset source begins with {BEGINNINGS}", id="a path for a source"),
    pytest.param(one_source("http://example.com/a"), SOURCE, f"a dataset source begins with {BEGINNINGS}", id="data from the web without protection"),
    pytest.param(one_source("hf://owner/name"), SOURCE, f"a dataset source begins with {BEGINNINGS}", id="a model for a source"),
    pytest.param(one_source("s3://datasets"), SOURCE, "write s3://BUCKET/KEY", id="a bucket without a key"),
    pytest.param(one_source("configmap://data"), SOURCE, "write configmap://NAME/KEY", id="a ConfigMap without a key"),
    pytest.param(one_source("pvc://data"), SOURCE, "write pvc://CLAIM/PATH", id="a volume without a path"),
    pytest.param(one_source("hf://datasets/squad"), SOURCE, "write hf://datasets/OWNER/NAME[/PATH][@REVISION]", id="hub data without its owner"),
    pytest.param(one_source("hf://datasets/a/b@"), SOURCE, "write hf://datasets/OWNER/NAME[/PATH][@REVISION]", id="hub data at no revision"),
    pytest.param(one_source("https://example.com"), SOURCE, "write https://HOST/PATH, without a user name or password", id="a host without a path"),
    *(
        pytest.param(one_source(f"https://{host}/latest/meta-data"), SOURCE, "never reads link-local or loopback addresses", id=f"{host} as a web server")
        for host in ("169.254.169.254", "169.254.169.254:80", "127.0.0.1", "localhost:8443", "[::1]", "[fe80::1]")
    ),
    pytest.param(one_source("https://me:secret@example.com/a"), SOURCE, "without a user name or password", id="a password in a URL"),
    pytest.param(one_source("s3://datasets/a", samples=0), "spec.dataset.train[0].samples", "greater than or equal to 1", id="no rows of a file"),
    pytest.param({"storage": {"s3": {"uri": "models/finetune"}}}, "spec.storage.s3.uri", "should match", id="a bucket without its scheme"),
    pytest.param({"storage": {"s3": {"endpoint": "s3:9000"}}}, "spec.storage.s3.endpoint", "should match", id="an S3 endpoint without its scheme"),
    pytest.param({"inference": {"endpoint": "Support"}}, "spec.inference.endpoint", "should match", id="an endpoint in upper case"),
    # combinations
    pytest.param(
        {"dataset": {"validation": {"sources": [{"source": "s3://datasets/val.jsonl"}], "splitRatio": "0.1"}}},
        "spec.dataset.validation.splitRatio",
        "set either validation.sources or validation.splitRatio, not both",
        id="validation data and a split",
    ),
    pytest.param(
        {"tuning": {"quantization": {"bits": 8, "type": "fp4"}}},
        "spec.tuning.quantization.type",
        "type applies to 4 bits only; remove it when bits is 8",
        id="a 4-bit format for 8 bits",
    ),
    pytest.param(
        {"tuning": {"quantization": {"bits": 8}}, "inference": {}},
        "spec.inference.engine",
        "set inference.engine to Swift, or inference.quantization to None",
        id="an 8-bit base on vLLM",
    ),
    pytest.param(
        {"tuning": {"quantization": {"type": "fp4"}}, "inference": {}},
        "spec.inference.engine",
        "set inference.engine to Swift, or inference.quantization to None",
        id="an fp4 base on vLLM",
    ),
    pytest.param(
        {"ttlSecondsAfterFinished": 60, "inference": {}},
        "spec.ttlSecondsAfterFinished",
        "would delete the endpoint together with the job: name the endpoint with inference.endpoint",
        id="a time to live for a job that owns its endpoint",
    ),
    # the gate
    pytest.param(
        {"evaluation": {"prompts": [{"name": "hours", "prompt": "When are you open?"}]}},
        "spec.evaluation",
        "evaluation.prompts are asked of the model as it is served: set inference, or use evaluation.evalLoss alone",
        id="questions to a model that is not served",
    ),
    pytest.param(
        {"evaluation": {"evalLoss": {"max": "1.5"}}, "dataset": {"validation": {"splitRatio": "0"}}},
        "spec.evaluation",
        "evaluation.evalLoss needs an evaluation loss",
        id="a bound on a loss that is not measured",
    ),
    pytest.param(
        {"evaluation": {"prompts": [{"name": "hours", "prompt": "When?", "messages": [{"role": "user", "content": "When?"}]}]}, "inference": {}},
        "spec.evaluation.prompts[0].prompt",
        "either prompt (one user message) or messages (a conversation)",
        id="a question asked twice",
    ),
    pytest.param(
        {"evaluation": {"prompts": [{"name": "hours"}]}, "inference": {}},
        "spec.evaluation.prompts[0].prompt",
        "either prompt (one user message) or messages (a conversation)",
        id="a question without words",
    ),
    pytest.param(
        {"evaluation": {"minPassRate": "80%", "prompts": [{"name": "hours", "prompt": "When?"}]}, "inference": {}},
        "spec.evaluation.minPassRate",
        "should match",
        id="a pass rate in percent",
    ),
    pytest.param(
        {"evaluation": {"notWorseThanBase": True, "prompts": [{"name": "hours", "prompt": "When?"}]}, "inference": {"quantization": "Merged"}},
        "spec.evaluation",
        "use notWorseThanCurrent",
        id="a comparison with the base of a merged model",
    ),
    pytest.param(
        {
            "evaluation": {"notWorseThanCurrent": True, "prompts": [{"name": "hours", "prompt": "When?"}]},
            "inference": {"strategy": {"type": "Recreate"}},
        },
        "spec.evaluation",
        "use notWorseThanBase or minPassRate, or another strategy",
        id="a comparison with pods that have to go first",
    ),
    pytest.param(
        {"resources": {"gpus": 4}, "training": {"effectiveBatchSize": 18}},
        "spec.training.effectiveBatchSize",
        "set training.effectiveBatchSize to a multiple of resources.gpus",
        id="a step that four GPUs cannot share",
    ),
    pytest.param(
        {"resources": {"gpus": 2, "gpuResource": "nvidia.com/mig-3g.20gb"}},
        "spec.resources.gpus",
        "a process sees one MIG slice only",
        id="two MIG slices",
    ),
    pytest.param({"queue": {"name": "team a"}}, "spec.queue.name", "should match", id="a queue whose name is no label"),
    pytest.param({"queue": {"name": "a", "priorityClass": "-"}}, "spec.queue.priorityClass", "should match", id="a priority whose name is no label"),
    pytest.param({"activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "greater than or equal to 1", id="no time at all"),
    # what this version does not do
    pytest.param({"resources": {"gpus": 9}}, "spec.resources.gpus", f"training on more than 8 GPUs {NOT_YET}", id="nine GPUs"),
    pytest.param({"resources": {"nodes": 2}}, "spec.resources.nodes", f"training on more than one node {NOT_YET}", id="two nodes"),
    pytest.param({"training": {"packing": "On"}}, "spec.training.packing", f"packing: On {NOT_YET}", id="packing"),
    pytest.param(
        {"inference": {"resources": {"gpus": 2}}}, "spec.inference.resources.gpus", f"serving on more than one GPU {NOT_YET}", id="serving on two GPUs"
    ),
]


@pytest.mark.parametrize(("change", "field", "message"), REFUSED_JOBS)
def test_a_job_is_refused(kubectl: Kubectl, change: dict[str, Any], field: str, message: str) -> None:
    said = kubectl.refused("create", "--dry-run=server", "-f", "-", stdin=merge(JOB, {"spec": change}))

    assert any(f"{field}: " in line and message in line for line in said.splitlines()), said


JUDGE = {"endpoint": "http://judge.team.svc/v1", "model": "judge"}
ADAPTER = {"uri": "s3://models/a", "manifestSha256": "a" * 64}
CANARY = {"parentRefs": [{"name": "public"}]}


def canary(**fields: Any) -> dict[str, Any]:
    return {"strategy": {"type": "Canary", "canary": {**CANARY, **fields}}}


ROOMS = {"name": "rooms", "adapter": ADAPTER}
REFUSED_ENDPOINTS = [
    pytest.param(
        {"strategy": {"type": "Canary"}},
        "spec.strategy.canary",
        "type Canary needs strategy.canary with the Gateway in parentRefs",
        id="a canary without a Gateway",
    ),
    pytest.param({"strategy": {"canary": CANARY}}, "spec.strategy.canary", "canary is for type Canary", id="steps of another strategy"),
    pytest.param(canary(parentRefs=[]), "spec.strategy.canary.parentRefs", "should have at least 1 items", id="a canary behind no Gateway"),
    pytest.param(canary(steps=[]), "spec.strategy.canary.steps", "should have at least 1 items", id="a canary without steps"),
    pytest.param(canary(steps=[50, 10]), "spec.strategy.canary.steps", "each step must be larger than the one before", id="steps that go back"),
    pytest.param(canary(steps=[10, 10]), "spec.strategy.canary.steps", "each step must be larger than the one before", id="a step that is none"),
    pytest.param(canary(steps=[0, 10]), "spec.strategy.canary.steps[0]", "greater than or equal to 1", id="a step of nothing"),
    pytest.param(canary(steps=[10, 100]), "spec.strategy.canary.steps[1]", "less than or equal to 99", id="everything as a step"),
    pytest.param(canary(hostnames=["Support.example.org"]), "spec.strategy.canary.hostnames[0]", "should match", id="a host name in capitals"),
    pytest.param({"servedName": "base"}, "spec.servedName", "'base' is the base model's name: choose another one", id="the base model's name"),
    pytest.param({"servedName": "a=b"}, "spec.servedName", "should match", id="a name that engines take for a pair"),
    pytest.param({"version": ""}, "spec.version", "at least 1 chars long", id="a pin to nothing"),
    pytest.param({"keepPrevious": 11}, "spec.keepPrevious", "less than or equal to 10", id="too many previous versions"),
    pytest.param({"gate": {"judge": JUDGE}}, "spec.gate.prompts", "need prompts or promptsFrom", id="a judge with nothing to rate"),
    pytest.param(
        {"candidate": {"adapter": ADAPTER, "evaluation": {"notWorseThanCurrent": True}}},
        "spec.candidate.evaluation.prompts",
        "need prompts or promptsFrom",
        id="a comparison with nothing to compare",
    ),
    pytest.param(
        {"quantization": "Merged", "gate": {"notWorseThanBase": True, "prompts": [{"name": "hours", "prompt": "When?"}]}},
        "spec.gate",
        "use notWorseThanCurrent",
        id="a comparison with the base of a merged model",
    ),
    pytest.param(
        {"strategy": {"type": "Recreate"}, "gate": {"notWorseThanCurrent": True, "prompts": [{"name": "hours", "prompt": "When?"}]}},
        "spec.gate",
        "use notWorseThanBase or minPassRate, or another strategy",
        id="a comparison with pods that have to go first",
    ),
    pytest.param({"adapters": [ROOMS], "engine": "Swift"}, "spec.adapters", "engine Swift serves one adapter only: set spec.engine", id="several with Swift"),
    pytest.param({"adapters": [ROOMS], "quantization": "Merged"}, "spec.adapters", "merged weights are one model: set spec.quantization", id="several merged"),
    pytest.param({"adapterLoading": "Live", "engine": "Swift"}, "spec.adapterLoading", "set spec.engine to vLLM, or spec.adapterLoading", id="live with Swift"),
    pytest.param(
        {"adapterLoading": "Live", "quantization": "Merged"}, "spec.adapterLoading", "set spec.quantization to AsTrained or None", id="live and merged"
    ),
    pytest.param({"adapterLoading": "Live", **canary()}, "spec.adapterLoading", "set spec.strategy.type to BlueGreen", id="live in steps"),
    pytest.param({"maxAdapters": 17}, "spec.maxAdapters", "less than or equal to 16", id="room for too many adapters"),
    pytest.param({"adapters": [ROOMS], "servedName": "rooms"}, "spec.adapters", "spec.servedName is the name of spec.candidate", id="the candidate's name"),
    pytest.param({"adapters": [{**ROOMS, "name": "base"}]}, "spec.adapters[0].name", "'base' is the base model's name", id="an adapter named as the base"),
    pytest.param({"adapters": [{**ROOMS, "name": ""}]}, "spec.adapters[0].name", "should be at least 1 chars long", id="an adapter without a name"),
    pytest.param({"adapters": [ROOMS, ROOMS]}, "spec.adapters[1]", "Duplicate value", id="two of one name"),
    pytest.param({"adapters": [{**ROOMS, "name": f"n{i}"} for i in range(16)]}, "spec.adapters", "must have at most 15 items", id="too many adapters"),
    pytest.param({"replicas": -1}, "spec.replicas", "greater than or equal to 0", id="fewer than no replicas"),
    pytest.param({"candidate": {}}, "spec.candidate.adapter", "Required value", id="a candidate without an adapter"),
    pytest.param(
        {"candidate": {"adapter": {"uri": "s3://models/a", "manifestSha256": "latest"}}},
        "spec.candidate.adapter.manifestSha256",
        "should match",
        id="a digest that is none",
    ),
]


@pytest.mark.parametrize(("change", "field", "message"), REFUSED_ENDPOINTS)
def test_an_endpoint_is_refused(kubectl: Kubectl, change: dict[str, Any], field: str, message: str) -> None:
    said = kubectl.refused("create", "--dry-run=server", "-f", "-", stdin=merge(ENDPOINT, {"spec": change}))

    assert any(f"{field}: " in line and message in line for line in said.splitlines()), said


def test_a_canary_is_taken_with_ten_steps_and_a_wildcard(kubectl: Kubectl) -> None:
    change = canary(hostnames=["*.example.org", "support"], steps=[1, 2, 3, 4, 5, 6, 7, 8, 9, 99], stepSeconds=1)
    found = kubectl.json("create", "--dry-run=server", "-f", "-", stdin=merge(ENDPOINT, {"spec": change}))
    assert found["spec"]["strategy"]["canary"]["steps"][-1] == 99


@pytest.mark.parametrize("sample", [JOB, ENDPOINT], ids=["FineTuneJob", "ModelEndpoint"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("a" * 53, "metadata.name may have at most 52 characters", id="a name of 53 characters"),
        pytest.param("3-llamas", "begin with a letter: a Service is named after it", id="a name that begins with a digit"),
        pytest.param("v1.2", "lower-case letters, digits and dashes", id="a name with a dot"),
    ],
)
def test_a_name_is_refused_that_no_child_can_carry(kubectl: Kubectl, sample: dict[str, Any], name: str, message: str) -> None:
    assert message in kubectl.refused("create", "--dry-run=server", "-f", "-", stdin=merge(sample, {"metadata": {"name": name}}))


@pytest.mark.parametrize(("gpus", "effective"), [(2, 16), (3, 12), (8, 8)])
def test_gpus_that_can_share_a_step_are_taken(kubectl: Kubectl, gpus: int, effective: int) -> None:
    change = {"resources": {"gpus": gpus}, "training": {"effectiveBatchSize": effective}}
    kubectl("create", "--dry-run=server", "-f", "-", stdin=merge(JOB, {"spec": change}))


def test_a_name_of_52_characters_is_taken(kubectl: Kubectl) -> None:
    kubectl("create", "--dry-run=server", "-f", "-", stdin=merge(JOB, {"metadata": {"name": "a" * 52}}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"training": {"learning_rate": "1e-4"}}, "spec.training.learning_rate", id="snake case"),
        pytest.param({"trainng": {}}, "spec.trainng", id="a misspelt section"),
        pytest.param({"dataset": {"train": [{"source": "s3://datasets/a", "split": "x"}]}}, "spec.dataset.train[0].split", id="inside a list"),
    ],
)
def test_an_unknown_field_is_refused(kubectl: Kubectl, change: dict[str, Any], field: str) -> None:
    said = kubectl.refused("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=merge(JOB, {"spec": change}))

    assert f'unknown field "{field}"' in said


@pytest.mark.parametrize("section", ["model", "dataset", "storage"])
def test_a_section_without_a_default_is_required(kubectl: Kubectl, section: str) -> None:
    job = merge(JOB, {})
    job["spec"] = {key: value for key, value in JOB["spec"].items() if key != section}

    assert f"spec.{section}: Required value" in kubectl.refused("create", "--dry-run=server", "-f", "-", stdin=job)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://datasets/support/",
        "hf://datasets/owner/name",
        "hf://datasets/owner/name/data/train.jsonl@refs/pr/1",
        "https://example.com:8443/a@1/train.jsonl?signature=a%2Fb",
        "pvc://data/train.jsonl",
        "configmap://rows/train.jsonl",
    ],
)
def test_a_source_of_each_kind_is_taken(kubectl: Kubectl, uri: str) -> None:
    kubectl("create", "--dry-run=server", "-f", "-", stdin=merge(JOB, {"spec": one_source(uri, samples=9)}))
