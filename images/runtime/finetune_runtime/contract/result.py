"""The JSON document that a pod leaves as its termination message, its exit codes, and its progress reports."""

from enum import IntEnum, StrEnum

from pydantic import Field

from .base import Model
from .config import AdapterRef
from .evaluation import EvaluationResult
from .fast_path import FastPathStatus
from .model_shape import ModelShape

MAX_MESSAGE_BYTES = 4096  # the kubelet cuts termination messages there
MAX_VALUE = 64  # characters of a value in a progress report


class Exit(IntEnum):
    """Exit codes of a step; anything else is a crash."""

    DONE = 0
    CRASH = 1
    INTERRUPTED = 10
    INVALID_CONFIG = 20
    DATA_INVALID = 21
    MODEL_INVALID = 22
    OUT_OF_MEMORY = 30
    STORAGE_UNAVAILABLE = 40


class Reason(StrEnum):
    """Why a step ended. CamelCase: the operator copies it into conditions."""

    COMPLETED = "Completed"
    INTERRUPTED = "Interrupted"
    INVALID_CONFIG = "InvalidConfig"
    GPU_NOT_VISIBLE = "GPUNotVisible"
    DATA_INVALID = "DataInvalid"
    DATASET_EMPTY = "DatasetEmpty"
    DATASET_NOT_FOUND = "DatasetNotFound"
    MODEL_INVALID = "ModelInvalid"
    MODEL_NOT_FOUND = "ModelNotFound"
    OUT_OF_MEMORY = "OutOfMemory"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    BUCKET_NOT_FOUND = "BucketNotFound"
    ACCESS_DENIED = "AccessDenied"
    CHECKPOINT_MISMATCH = "CheckpointMismatch"
    TRAINING_CRASHED = "TrainingCrashed"
    GATE_CLOSED = "GateClosed"
    ENDPOINT_UNAVAILABLE = "EndpointUnavailable"
    INTERNAL_ERROR = "InternalError"


class StepError(Exception):
    """A step cannot go on. The message tells the user the cause and the cure."""

    def __init__(self, code: Exit, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class DataSummary(Model):
    """What prepare found."""

    train_rows: int
    validation_rows: int
    invalid_rows: int = 0
    tokens: int = Field(default=0, description="Tokens of all training rows.")
    longest: int = Field(default=0, description="Longest training row in tokens.")
    sha256: str = ""
    model_revision: str = Field(default="", description="Commit of an hf:// model.")
    model_type: str = ""
    template: str = ""
    shape: ModelShape | None = Field(default=None, description="Sizes of the model; absent where they cannot be read.")
    warnings: list[str] = []
    fast_path: str | None = Field(default=None, description="Why model or job cannot take the fast path; empty: they can; absent: it is off.")


class TrainSummary(Model):
    """How far training came."""

    step: int = 0
    total_steps: int = 0
    resumed_from: int = 0
    committed_step: int = Field(default=0, description="Step of the newest checkpoint committed to storage.")
    loss: float | None = None
    eval_loss: float | None = None
    micro_batch: int = 0
    stopped_early: bool = False
    adapter: AdapterRef | None = None
    adapter_step: int = Field(default=0, description="Step of the checkpoint that became the adapter.")
    fast_path: FastPathStatus | None = Field(default=None, description="What became of the fast path; absent: it is off.")
    command: str = Field(default="", description="Command line of the training process, quoted for a shell.")
    versions: dict[str, str] = Field(default={}, description="Versions of the packages that decide what is trained.")


class StepResult(Model):
    """Outcome of a step."""

    step: str
    reason: Reason
    message: str = ""
    data: DataSummary | None = None
    train: TrainSummary | None = None
    evaluation: EvaluationResult | None = None
    merged: AdapterRef | None = None

    def encode(self) -> str:
        """JSON of at most MAX_MESSAGE_BYTES bytes: the command is left out, then message, warnings and an evaluation's sentences are shortened to fit."""
        result = self
        if result.train and _size(result) > MAX_MESSAGE_BYTES:
            result = result.model_copy(update={"train": result.train.model_copy(update={"command": ""})})
        if result.data and len(result.data.warnings) > 5:
            result = result.model_copy(update={"data": result.data.model_copy(update={"warnings": result.data.warnings[:5]})})
        if result.evaluation and _size(result) > MAX_MESSAGE_BYTES:
            return _with_evaluation(result)
        text = _text(result)
        if (excess := len(text.encode()) - MAX_MESSAGE_BYTES) > 0:
            # JSON escapes can make a character up to 6 bytes long, so cut by a margin instead of counting escapes.
            keep = max(0, len(result.message) - excess - 64)
            short = result.model_copy(update={"message": result.message[:keep] + " [...]"})
            text = _text(short)
            if len(text.encode()) > MAX_MESSAGE_BYTES:
                bare = StepResult(step=self.step, reason=self.reason, message=self.message[:500], train=result.train)
                text = _text(bare)
        return text


def _with_evaluation(result: StepResult) -> str:
    """The figures stay, for the operator decides by them; the sentences get shorter and fewer, for the report has them all."""
    found = result.evaluation or EvaluationResult(passed=False)
    for most, length in ((8, 200), (4, 200), (3, 100), (1, 100), (1, 32)):
        short = found.model_copy(update={"reasons": [_cut(reason, length) for reason in found.reasons[:most]], "failed_prompts": found.failed_prompts[:most]})
        text = _text(result.model_copy(update={"message": _cut(result.message, 2 * length), "evaluation": short, "data": None, "train": None}))
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    return _text(StepResult(step=result.step, reason=result.reason, evaluation=EvaluationResult(passed=found.passed)))


def _text(result: StepResult) -> str:
    return result.model_dump_json(by_alias=True, exclude_none=True)


def _size(result: StepResult) -> int:
    return len(_text(result).encode())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} [...]"


class Metric(Model):
    """One named value; values are strings as in the Kubeflow TrainJob status protocol."""

    name: str = Field(max_length=64)
    value: str = Field(max_length=MAX_VALUE)


class TrainerStatus(Model):
    """Body of a progress report, in the shape of the Kubeflow TrainJob status protocol (KEP-2779)."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: list[Metric] = Field(default=[], max_length=256)
    last_updated_time: str


class ProgressReport(Model):
    """Envelope of a progress report."""

    trainer_status: TrainerStatus
