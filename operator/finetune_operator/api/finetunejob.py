"""FineTuneJob: runs once, produces one adapter version."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Fraction, Model, PositiveFloat, Quantity
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.spec import Checkpoints, DatasetSpec, ModelSpec, SecretRef, Storage, Training, Tuning, not_yet, rules

from .meta import NAME_RULES, Condition, ObjectName

PodToleration = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class Resources(Model):
    """What the training pod gets."""

    model_config = rules(
        not_yet("self.gpus == 1", "training on more than one GPU", ".gpus"),
        not_yet("self.nodes == 1", "training on more than one node", ".nodes"),
        not_yet("!has(self.gpuMemory)", "the check against the GPU's memory", ".gpuMemory"),
    )
    gpus: int = Field(default=1, ge=1, le=16, description="GPUs of the training pod.")
    nodes: int = Field(default=1, ge=1, le=64, description="Nodes to train on.")
    gpu_resource: str = Field(
        default="nvidia.com/gpu", max_length=253, description="Extended resource that stands for a GPU, for example nvidia.com/mig-3g.20gb."
    )
    gpu_memory: Quantity | None = Field(default=None, description="Memory of one GPU in bytes, where nodes carry no label nvidia.com/gpu.memory.")
    cpu: Quantity = Field(default="4", description="CPU cores requested for training.")
    memory: Quantity = Field(default="16Gi", description="Memory limit of the training pod in bytes. Loading needs about the size of one weights file.")
    scratch: Quantity = Field(default="100Gi", description="Size limit in bytes of the scratch volume: the base model and two checkpoints.")
    scratch_claim: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim to use as scratch volume, in a directory of the job's own; absent: the node's disk. With a claim, a new pod does "
        "not fetch the base model again, and a checkpoint that storage could not take is not lost.",
    )
    node_selector: dict[str, str] = Field(default={}, max_length=32, description="Labels that a node must carry.")
    tolerations: list[PodToleration] = Field(default=[], max_length=32, description="Taints that the pod tolerates, as in a Pod's spec.")


class Queue(Model):
    """Kueue."""

    name: str = Field(min_length=1, max_length=63, description="LocalQueue to wait in.")
    priority_class: str = Field(default="", max_length=253, description="WorkloadPriorityClass.")


class Retries(Model):
    """What happens after a failure that may pass."""

    limit: int = Field(default=3, ge=0, le=20, description="Further attempts after the first. Interruptions and unreachable storage do not count.")
    backoff_seconds: int = Field(default=30, ge=1, le=3600, description="Wait before the first retry in seconds; doubles each time, at most 5 minutes.")


class EvalLoss(Model):
    """Bound on the evaluation loss."""

    max: PositiveFloat = Field(description="Largest evaluation loss that passes.")


class Expectation(Model):
    """What an answer must be like."""

    contains: list[Annotated[str, Field(max_length=1024)]] = Field(default=[], max_length=32, description="Every one of these must occur.")
    not_contains: list[Annotated[str, Field(max_length=1024)]] = Field(default=[], max_length=32, description="None of these may occur.")
    regex: str = Field(default="", max_length=1024, description="Regular expression that must match.")
    json_schema: str = Field(default="", max_length=8192, description="JSON schema that the answer must satisfy, as JSON text.")
    max_latency_seconds: PositiveFloat | None = Field(default=None, description="Longest time for the whole answer, in seconds.")


class EvaluationPrompt(Model):
    """One question with its expectation."""

    name: str = Field(min_length=1, max_length=63, description="Name in the report.")
    prompt: str = Field(min_length=1, max_length=8192, description="User message.")
    system: str = Field(default="", max_length=8192, description="System message; empty: none.")
    expect: Expectation = Field(default=Expectation(), description="What the answer must be like.")


class Judge(Model):
    """A model that rates answers."""

    endpoint: str = Field(pattern=r"^https?://[^\s]+$", max_length=512, description="URL of an OpenAI-compatible API.")
    model: str = Field(min_length=1, max_length=256, description="Model to ask.")
    secret_ref: SecretRef | None = Field(default=None, description="Secret whose key OPENAI_API_KEY is the API key.")
    rubric: str = Field(default="", max_length=8192, description="Instructions for ratings from 1 to 5.")


class Evaluation(Model):
    """Gate between training and traffic."""

    eval_loss: EvalLoss | None = Field(default=None, description="Bound on the evaluation loss.")
    prompts: list[EvaluationPrompt] = Field(default=[], max_length=256, description="Questions with expectations.")
    min_pass_rate: Fraction = Field(default="0.8", description="Share of prompts that must meet their expectation, 0 to 1.")
    repeats: int = Field(default=3, ge=1, le=20, description="Times each prompt is asked.")
    judge: Judge | None = Field(default=None, description="Optional judge; its failure never passes a version.")


class ServingResources(Model):
    """What a serving pod gets."""

    model_config = rules(not_yet("self.gpus == 1", "serving on more than one GPU", ".gpus"))
    gpus: int = Field(default=1, ge=1, le=16, description="GPUs of a serving pod.")
    gpu_resource: str = Field(default="nvidia.com/gpu", max_length=253, description="Extended resource that stands for a GPU.")
    cpu: Quantity = Field(default="2", description="CPU cores requested.")
    memory: Quantity = Field(default="16Gi", description="Memory limit in bytes.")
    scratch: Quantity = Field(default="60Gi", description="Size limit in bytes of the volume that holds base model and adapter.")
    node_selector: dict[str, str] = Field(default={}, max_length=32, description="Labels that a node must carry.")
    tolerations: list[PodToleration] = Field(default=[], max_length=32, description="Taints that the pod tolerates, as in a Pod's spec.")


Engine = Annotated[
    Literal["vLLM", "Swift"], Field(description="vLLM: fast, many requests at once. Swift: transformers through ms-swift, one request at a time.")
]
ServingQuantization = Annotated[
    Literal["AsTrained", "None"],
    Field(description="AsTrained: the base model is quantised as in training, which is what the adapter learned on. None: 16-bit base; answers may differ."),
]


class Inference(Model):
    """Endpoint that serves the adapter."""

    endpoint: ObjectName | None = Field(
        default=None,
        description="ModelEndpoint to roll the adapter out to; made when missing, kept when the job is deleted. "
        "Absent: an endpoint named as the job and deleted with it.",
    )
    engine: Engine = "vLLM"
    quantization: ServingQuantization = "AsTrained"
    replicas: int = Field(default=1, ge=0, le=1000, description="Serving pods.")
    max_length: int | None = Field(
        default=None, ge=16, le=1048576, description="Longest conversation in tokens, prompt and answer; absent: training.maxLength."
    )
    served_name: str = Field(
        default="", max_length=128, description="Model name in the OpenAI API; empty: the endpoint's name. The base model is always served as 'base'."
    )
    resources: ServingResources = Field(default=ServingResources(), description="What a serving pod gets.")


_MUTABLE_NOTE = "a run's inputs are fixed: create a new FineTuneJob for another run"


def _fixed(field: str, *, optional: bool = False) -> dict[str, Any]:
    same = f"self.{field} == oldSelf.{field}"
    rule = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})" if optional else same
    return {"rule": rule, "message": f"spec.{field} is immutable: {_MUTABLE_NOTE}", "fieldPath": f".{field}"}


class FineTuneJobSpec(Model):
    """One run: model, data, method, resources and what to do with the result."""

    model_config = rules(
        *(_fixed(f) for f in ("model", "dataset", "tuning", "training", "resources", "storage", "checkpoints")),
        *(_fixed(f, optional=True) for f in ("queue", "evaluation", "inference")),
        not_yet("!has(self.queue)", "queueing with Kueue", ".queue"),
        not_yet("!has(self.evaluation)", "the evaluation gate", ".evaluation"),
        not_yet("!has(self.activeDeadlineSeconds)", "a deadline", ".activeDeadlineSeconds"),
        not_yet("!has(self.ttlSecondsAfterFinished)", "deletion of finished jobs", ".ttlSecondsAfterFinished"),
        *(
            {
                "rule": f"!({wish}) || size(self.dataset.validation.sources) > 0 || double(self.dataset.validation.splitRatio) > 0.0",
                "message": f"{field} needs an evaluation loss: set dataset.validation.splitRatio above 0 or give dataset.validation.sources",
                "fieldPath": f".{field}",
            }
            for wish, field in (("has(self.training.earlyStopping)", "training.earlyStopping"), ("self.checkpoints.use == 'Best'", "checkpoints.use"))
        ),
        {
            "rule": "!has(self.inference) || self.inference.engine != 'vLLM' || self.inference.quantization != 'AsTrained' "
            "|| self.tuning.method != 'QLoRA' || self.tuning.quantization.bits != 8",
            "message": "vLLM cannot serve an 8-bit base model as trained: set inference.engine to Swift, or inference.quantization to None",
            "fieldPath": ".inference.engine",
        },
    )
    model: ModelSpec = Field(description="The base model.")
    dataset: DatasetSpec = Field(description="What the model learns from.")
    tuning: Tuning = Field(default=Tuning(), description="How the model is adapted.")
    training: Training = Field(default=Training(), description="Hyper-parameters of the run.")
    resources: Resources = Field(default=Resources(), description="What the training pod gets.")
    queue: Queue | None = Field(default=None, description="Kueue queue; absent: the job is not queued.")
    storage: Storage = Field(description="Where checkpoints, adapters and reports go.")
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="Checkpoints committed to storage.")
    retries: Retries = Field(default=Retries(), description="What happens after a failure that may pass.")
    evaluation: Evaluation | None = Field(default=None, description="Gate between training and traffic; absent: none.")
    inference: Inference | None = Field(default=None, description="Endpoint that serves the adapter; absent: none.")
    suspend: bool = Field(default=False, description="Stop the pods after a checkpoint and wait; false again: go on from there.")
    active_deadline_seconds: int | None = Field(default=None, ge=1, description="Seconds the job may be active before it fails; absent: no limit.")
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, description="Seconds after which a finished job is deleted; absent: never.")


class Progress(Model):
    """How far training is."""

    step: int = Field(default=0, description="Optimizer steps done.")
    total_steps: int = Field(default=0, description="Optimizer steps of the whole run.")
    percent: int = Field(default=0, description="Steps done, 0 to 100.")
    epoch: str | None = Field(default=None, description="Passes over the training rows.")
    loss: str | None = Field(default=None, description="Last training loss.")
    eval_loss: str | None = Field(default=None, description="Last evaluation loss.")
    learning_rate: str | None = Field(default=None, description="Last learning rate.")
    tokens_per_second: str | None = Field(default=None, description="Training tokens per second.")
    gpu_memory: str | None = Field(default=None, description="Peak GPU memory in GiB.")
    eta_seconds: int | None = Field(default=None, description="Estimated seconds until training ends.")
    updated_at: str | None = Field(default=None, description="When the pod last reported.")


class Display(Model):
    """Short texts for the columns of `kubectl get`."""

    step: str | None = Field(default=None, description="Steps done of all steps, for example 132/480.")
    eta: str | None = Field(default=None, description="Estimated time left, for example 14m.")


class Attempt(Model):
    """One try of one step."""

    step: str = Field(description="Prepare or Train.")
    number: int = Field(description="Number of the try, from 1.")
    started_at: str = Field(default="", description="When its pod was created.")
    ended_at: str | None = Field(default=None, description="When it ended.")
    reason: str | None = Field(default=None, description="Why it ended.")
    message: str | None = Field(default=None, max_length=1024, description="What the pod said.")
    exit_code: int | None = Field(default=None, description="Exit code of the last pod.")
    pod: str | None = Field(default=None, description="The last pod.")
    node: str | None = Field(default=None, description="Node of the last pod.")
    resumed_from: int | None = Field(default=None, description="Step of the checkpoint it went on from; 0: none.")


class DatasetStatus(Model):
    """What the check of the data found."""

    train_rows: int = Field(default=0, description="Rows to train on.")
    validation_rows: int = Field(default=0, description="Rows held out.")
    invalid_rows: int = Field(default=0, description="Rows left out.")
    tokens: int = Field(default=0, description="Tokens of all training rows.")
    longest: int = Field(default=0, description="Longest training row in tokens.")
    sha256: str = Field(default="", description="Digest of the prepared rows.")
    warnings: list[str] = Field(default=[], max_length=32, description="What you may want to look at.")


class RunStatus(Model):
    """What decided the result: enough to do the same run by hand."""

    config_hash: str = Field(
        default="", description="Hash of model, dataset, tuning and training as specified. A checkpoint is resumed only under the same one."
    )
    report: str = Field(default="", description="S3 URI of the report page: curves, data, command and answers before and after.")
    dataset_sha256: str = Field(default="", description="Digest of the prepared rows.")
    model_revision: str = Field(default="", description="Commit of an hf:// model.")
    model_type: str = Field(default="", description="ms-swift's model type, as given or found.")
    template: str = Field(default="", description="ms-swift's chat template, as given or found.")
    micro_batch_size: int | None = Field(default=None, description="Rows per forward pass that training came to.")
    stopped_early: bool | None = Field(default=None, description="Whether training.earlyStopping ended the training.")
    command: str | None = Field(default=None, max_length=8192, description="Command line of the training process, quoted for a shell.")
    versions: dict[str, Annotated[str, Field(max_length=64)]] | None = Field(
        default=None, max_length=32, description="Versions of the packages that decide what is trained."
    )


class ArtifactStatus(Model):
    """The committed adapter."""

    adapter: AdapterRef = Field(description="Where it is and the digest of its manifest.")
    step: int = Field(default=0, description="Optimizer step it was taken at.")
    loss: str | None = Field(default=None, description="Last training loss.")
    eval_loss: str | None = Field(default=None, description="Last evaluation loss.")


class EndpointStatus(Model):
    """Where the adapter is served."""

    name: str = Field(description="ModelEndpoint.")
    url: str = Field(default="", description="Base URL of the OpenAI-compatible API inside the cluster.")


class FineTuneJobStatus(Model):
    """Observed state; conditions are the truth, everything else is derived or recorded."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status was computed from.")
    phase: str = Field(default="", description="Summary of the conditions: Pending, Preparing, Training, Deploying, Suspended, Succeeded or Failed.")
    reason: str = Field(default="", description="Reason of the condition that matters now.")
    message: str = Field(default="", max_length=32768, description="Message of the condition that matters now.")
    start_time: str | None = Field(default=None, description="When the operator first saw the job.")
    completion_time: str | None = Field(default=None, description="When the job succeeded or failed.")
    attempt: int = Field(default=0, description="Current try of training.")
    attempts: list[Attempt] = Field(default=[], max_length=10, description="The last 10 tries.")
    failures: dict[str, int] = Field(default={}, max_length=4, description="Failed tries that count against retries.limit, by step.")
    interruptions: int = Field(default=0, description="Pods that ended early with their checkpoint committed.")
    progress: Progress | None = Field(default=None, description="How far training is.")
    display: Display | None = Field(default=None, description="Texts for the columns of kubectl get.")
    dataset: DatasetStatus | None = Field(default=None, description="What the check of the data found.")
    run: RunStatus | None = Field(default=None, description="What decided the result: command, versions, revisions and digests.")
    artifact: ArtifactStatus | None = Field(default=None, description="The committed adapter.")
    endpoint: EndpointStatus | None = Field(default=None, description="Where the adapter is served.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, DataReady, Trained, Deployed, Suspended, Succeeded.",
    )


class FineTuneJob(Model):
    """FineTuneJob takes one dataset to one committed adapter and, if asked, to a live endpoint."""

    model_config = rules(*NAME_RULES)
    spec: FineTuneJobSpec = Field(description="What to run.")
    status: FineTuneJobStatus = Field(default=FineTuneJobStatus(), description="Observed state.")


PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Step", "type": "string", "jsonPath": ".status.display.step"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.progress.loss"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.display.eta"},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason"},
    {"name": "Endpoint", "type": "string", "jsonPath": ".status.endpoint.url"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source", "priority": 1},
    {"name": "Eval-Loss", "type": "string", "jsonPath": ".status.progress.evalLoss", "priority": 1},
    {"name": "Adapter", "type": "string", "jsonPath": ".status.artifact.adapter.uri", "priority": 1},
    {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
]
