"""FineTuneJob: runs once, produces one adapter version. What its author writes; what the operator answers is in jobstatus."""

from typing import Any

from pydantic import Field

from finetune_runtime.contract.base import Model, Quantity
from finetune_runtime.contract.evaluation import Evaluation
from finetune_runtime.contract.spec import Checkpoints, DatasetSpec, ModelSpec, Storage, Training, Tuning, not_yet, rules

from .jobstatus import FineTuneJobStatus
from .meta import NAME_RULES, GpuResource, ObjectName
from .serving import NO_BASE, NO_CURRENT, Engine, PodToleration, ServedName, ServingQuantization, ServingResources, Strategy

LABEL_VALUE = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


class Resources(Model):
    """What the training pod gets."""

    model_config = rules(
        not_yet("self.gpus <= 8", "training on more than 8 GPUs", ".gpus"),
        {
            "rule": "self.gpus == 1 || !self.gpuResource.startsWith('nvidia.com/mig-')",
            "message": "a process sees one MIG slice only, so that slices cannot train together: set gpus to 1, or gpuResource to whole GPUs",
            "fieldPath": ".gpus",
        },
        not_yet("self.nodes == 1", "training on more than one node", ".nodes"),
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=16,
        description="GPUs of the training pod, at most 8. Each has the whole model and a process of its own, which trains an equal part of every step's rows "
        "and needs its part of cpu and memory.",
    )
    nodes: int = Field(default=1, ge=1, le=64, description="Nodes to train on.")
    gpu_resource: GpuResource = Field(
        default="nvidia.com/gpu",
        description="Extended resource that stands for a GPU, for example nvidia.com/mig-3g.20gb.",
    )
    gpu_memory: Quantity | None = Field(
        default=None,
        description="Memory of one GPU in bytes. Absent: read from the nodes' label GPURESOURCE.memory (nvidia.com/gpu.memory), which NVIDIA's GPU "
        "feature discovery sets.",
    )
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

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=LABEL_VALUE,
        description="LocalQueue of the namespace; training waits until it has quota. Checking the data does not.",
    )
    priority_class: str = Field(
        default="", max_length=63, pattern=f"({LABEL_VALUE})|^$", description="WorkloadPriorityClass: order in the queue, and who is preempted."
    )


class Retries(Model):
    """What happens after a failure that may pass."""

    limit: int = Field(default=3, ge=0, le=20, description="Further attempts after the first. Interruptions and unreachable storage do not count.")
    backoff_seconds: int = Field(default=30, ge=1, le=3600, description="Wait before the first retry in seconds; doubles each time, at most 5 minutes.")


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
    served_name: ServedName = Field(
        default="",
        description="Model name in the OpenAI API; empty: the endpoint's own. Under another name, an endpoint that exists serves this adapter beside its own.",
    )
    resources: ServingResources = Field(default=ServingResources(), description="What a serving pod gets.")
    strategy: Strategy = Field(default=Strategy(), description="How one version replaces another; for an endpoint that this job makes.")
    keep_previous: int = Field(default=0, ge=0, le=10, description="Previous versions whose pods are kept; for an endpoint that this job makes.")


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
        {
            "rule": "!has(self.evaluation) || has(self.inference) || (size(self.evaluation.prompts) == 0 && !has(self.evaluation.promptsFrom))",
            "message": "evaluation.prompts are asked of the model as it is served: set inference, or use evaluation.evalLoss alone",
            "fieldPath": ".evaluation",
        },
        {
            "rule": "!has(self.evaluation) || !has(self.evaluation.evalLoss) || size(self.dataset.validation.sources) > 0 "
            "|| double(self.dataset.validation.splitRatio) > 0.0",
            "message": "evaluation.evalLoss needs an evaluation loss: set dataset.validation.splitRatio above 0 or give dataset.validation.sources",
            "fieldPath": ".evaluation",
        },
        {
            "rule": "self.training.effectiveBatchSize % self.resources.gpus == 0",
            "message": "every GPU trains an equal part of a step: set training.effectiveBatchSize to a multiple of resources.gpus",
            "fieldPath": ".training.effectiveBatchSize",
        },
        {
            "rule": "!has(self.ttlSecondsAfterFinished) || !has(self.inference) || has(self.inference.endpoint)",
            "message": "ttlSecondsAfterFinished would delete the endpoint together with the job: name the endpoint with inference.endpoint, so that it stays",
            "fieldPath": ".ttlSecondsAfterFinished",
        },
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
            "|| self.tuning.method != 'QLoRA' || (self.tuning.quantization.bits == 4 && self.tuning.quantization.type == 'nf4')",
            "message": "vLLM serves a base model as trained in 4 bits of type nf4 only: set inference.engine to Swift, or inference.quantization to None",
            "fieldPath": ".inference.engine",
        },
        {
            "rule": "!has(self.inference) || self.inference.quantization != 'Merged' || !has(self.evaluation) || !self.evaluation.notWorseThanBase",
            "fieldPath": ".evaluation",
            "message": NO_BASE,
        },
        {
            "rule": "!has(self.inference) || self.inference.strategy.type != 'Recreate' || !has(self.evaluation) || !self.evaluation.notWorseThanCurrent",
            "fieldPath": ".evaluation",
            "message": NO_CURRENT,
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
    suspend: bool = Field(
        default=False, description="Stop the pods after a checkpoint and wait; false again: go on from there. In a queue the quota is given back."
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Seconds the job may be active before it fails with DeadlineExceeded; absent: no limit. Time in which it is suspended or waits for "
        "quota does not count.",
    )
    scheduling_timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Seconds a pod may wait for a node, an image, a Secret or a volume before the job fails with what was missing; absent: it waits.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        description="Seconds after which a finished FineTuneJob is deleted with its pods; absent: never. Its artefacts in storage and a named endpoint stay.",
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
