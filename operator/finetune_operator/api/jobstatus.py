"""What the operator says of a FineTuneJob: conditions are the truth, everything else is derived or recorded."""

from typing import Annotated

from pydantic import Field

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.evaluation import EvaluationResult
from finetune_runtime.contract.fast_path import FastPathStatus
from finetune_runtime.contract.model_shape import ModelShape

from .meta import Condition


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
    checkpoint_step: int = Field(default=0, description="Step of the newest checkpoint committed to storage: what an interruption goes back to.")
    resumed_from: int | None = Field(default=None, description="Step of the checkpoint that the pod went on from; 0: none.")
    fast_path: str | None = Field(default=None, max_length=64, description="used, or why training does not take the fast path.")
    updated_at: str | None = Field(default=None, description="When the pod last reported.")
    stale: bool | None = Field(default=None, description="True while a pod runs that has not reported for some minutes.")


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
    pod_created_at: str | None = Field(default=None, description="When the last pod was created.")
    node: str | None = Field(default=None, description="Node of the last pod.")
    resumed_from: int | None = Field(default=None, description="Step of the checkpoint it went on from; 0: none.")
    interruptions: int | None = Field(default=None, description="Pods of this try that were taken away: evicted, drained, preempted, lost with their node.")
    interrupted_by: str | None = Field(default=None, max_length=1024, description="Cause of the last interruption, in the words of Kubernetes or Kueue.")


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
    fast_path: FastPathStatus | None = Field(default=None, description="What became of the fast path; absent: training.fastPath is Off.")
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
    served_name: str | None = Field(default=None, max_length=128, description="Model name in requests, where it is not the endpoint's own.")
    version: str | None = Field(default=None, description="Name of the version in the endpoint's status.")
    proposed: bool | None = Field(default=None, description="Whether the endpoint has been told of this adapter.")


class EstimateStatus(Model):
    """Memory that one GPU needs, and what there is."""

    required: str = Field(description="Estimated peak at the smallest micro-batch, for example 10.9Gi.")
    available: str | None = Field(default=None, description="Memory of the largest GPU that the job may use; absent: not known.")
    parts: dict[str, Annotated[str, Field(max_length=32)]] = Field(default={}, max_length=16, description="What it is made of.")


class FineTuneJobStatus(Model):
    """Observed state; conditions are the truth, everything else is derived or recorded."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status was computed from.")
    phase: str = Field(default="", description="Summary of the conditions: Pending, Preparing, Queued, Training, Deploying, Suspended, Succeeded or Failed.")
    reason: str = Field(default="", description="Reason of the condition that matters now.")
    message: str = Field(default="", max_length=32768, description="Message of the condition that matters now.")
    start_time: str | None = Field(default=None, description="When the operator first saw the job.")
    completion_time: str | None = Field(default=None, description="When the job succeeded or failed.")
    attempt: int = Field(default=0, description="Current try of training.")
    attempts: list[Attempt] = Field(default=[], max_length=10, description="The last 10 tries.")
    failures: dict[str, int] = Field(default={}, max_length=4, description="Failed tries that count against retries.limit, by step.")
    interruptions: int = Field(default=0, description="Pods that were taken away: evicted, drained, preempted, lost with their node. Never failures.")
    idle_interruptions: int = Field(default=0, description="Interruptions in a row without a new checkpoint; three end the job with NoProgress.")
    active_seconds: int = Field(default=0, description="Seconds the job was active before activeSince; suspension and waiting for quota do not count.")
    active_since: str | None = Field(default=None, description="Since when the job is active; absent while it is suspended or waits for quota.")
    model: ModelShape | None = Field(default=None, description="What of the base model decides about memory.")
    estimate: EstimateStatus | None = Field(default=None, description="Memory that one GPU needs for this training.")
    progress: Progress | None = Field(default=None, description="How far training is.")
    display: Display | None = Field(default=None, description="Texts for the columns of kubectl get.")
    dataset: DatasetStatus | None = Field(default=None, description="What the check of the data found.")
    run: RunStatus | None = Field(default=None, description="What decided the result: command, versions, revisions and digests.")
    artifact: ArtifactStatus | None = Field(default=None, description="The committed adapter.")
    evaluation: EvaluationResult | None = Field(default=None, description="What came of the gate between training and traffic.")
    endpoint: EndpointStatus | None = Field(default=None, description="Where the adapter is served.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, DataReady, Fits, QuotaReserved, Trained, Evaluated, Deployed, Suspended, Succeeded; for tools that know kstatus Reconciling "
        "and Stalled.",
    )
