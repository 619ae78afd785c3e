"""The JSON document that a pod reads at start; the operator writes it into a ConfigMap."""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from .base import Model
from .evaluation import Evaluation
from .spec import Checkpoints, DatasetSpec, ModelSpec, S3Storage, Training, Tuning

CONFIG_DIR = "/etc/finetune"
CONFIG_PATH = f"{CONFIG_DIR}/config.json"
STATUS_CA_PATH = f"{CONFIG_DIR}/status-ca.crt"
STATUS_TOKEN_PATH = "/var/run/finetune/token"  # noqa: S105  a path, not a secret
STATUS_AUDIENCE = "finetune-operator"
SCRATCH_DIR = "/scratch"
SOURCES_DIR = "/sources"
DRAINING = ".draining"  # in SCRATCH_DIR: a serving pod that was told to end has this file
TERMINATION_LOG = "/dev/termination-log"
ALLOWED_CIDRS_ENV = "FINETUNE_ALLOWED_CIDRS"  # networks, by commas, that https:// sources may be read from beside public addresses
USER_ID = 10001  # one UID for training and serving: safetensors writes files that only their owner can read
SERVING_PORT = 8000
ADAPTERS_PORT = 8001  # where the sidecar of a pod with live adapters tells which of them the engine serves
SERVED_BASE = "base"  # name of the base model in the API of every endpoint
CACHE_DIR = "/cache"  # where serving pods find the volume that base models are kept in, shared by any number of pods


def mounted_source(uri: str) -> tuple[str, str, str] | None:
    """(kind, object name, path in the pod) of a pvc:// or configmap:// source; None for sources read over the network."""
    parts = urlsplit(uri)
    if parts.scheme not in ("pvc", "configmap"):
        return None
    return parts.scheme, parts.netloc, str(PurePosixPath(SOURCES_DIR, parts.scheme, parts.netloc, parts.path.lstrip("/")))


class JobRef(Model):
    """Identity of the object that a pod works for."""

    namespace: str
    name: str
    uid: str


class Reporting(Model):
    """Where the supervisor sends progress. Losing reports never changes an outcome."""

    url: str = ""
    interval_seconds: float = 5.0


class JobConfig(Model):
    """Input of the prepare and train steps."""

    job: JobRef
    model: ModelSpec
    dataset: DatasetSpec
    tuning: Tuning
    training: Training
    checkpoints: Checkpoints
    storage: S3Storage
    reporting: Reporting = Reporting()
    storage_timeout_seconds: int = Field(default=600, ge=1, description="How long the end of a run waits for storage that is down.")
    allow_cpu: bool = Field(default=False, description="Development clusters: train on the CPU when no GPU is visible.")
    cpu_threads: int = Field(default=1, ge=1, description="Whole cores of the training pod.")
    gpus: int = Field(default=1, ge=1, description="GPUs of the training pod; each has a process of its own, which trains an equal part of every step.")

    @property
    def rows_per_gpu(self) -> int:
        """Rows of an optimizer step on one GPU. The API has made sure that nothing is left over."""
        return self.training.effective_batch_size // self.gpus

    @property
    def prefix(self) -> str:
        """s3:// URI below which the job keeps everything, without a trailing slash."""
        return f"{self.storage.uri.rstrip('/')}/{self.job.namespace}/{self.job.name}/{self.job.uid}"

    def config_hash(self) -> str:
        """Hash of all that decides the result of the training. A checkpoint is resumed only under the same hash."""
        content = {key: getattr(self, key).dump() for key in ("model", "dataset", "tuning", "training")}
        # Neither how often a run logs nor which Secret unlocks the model changes what is learned.
        content["training"].pop("loggingSteps", None)
        content["training"].pop("fastPath", None)  # nor does the way in which it is computed
        content["model"].pop("secretRef", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class AdapterRef(Model):
    """A committed adapter, or what was merged of it. The digest is that of its manifest, which lists the digests of all files."""

    uri: str = Field(pattern=r"^s3://.+$", max_length=1024, description="s3:// directory that holds the manifest.json.")
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the manifest, in hexadecimal.")


class NamedAdapter(Model):
    """An adapter under the name that it is served by."""

    name: str
    adapter: AdapterRef


class Target(Model):
    """A model behind an OpenAI-compatible API."""

    url: str = Field(description="Base URL with /v1.")
    model: str = Field(description="Name in the API.")


def judge_key(place: int) -> str:
    """Environment variable that holds the API key of the judge of the gate at this place in EvaluateConfig.gates."""
    return f"FINETUNE_JUDGE_KEY_{place}"


class DriftConfig(Model):
    """What an evaluation needs to tell by how much answers change on another quantisation than the training's."""

    adapter: AdapterRef
    quantization: Literal["None", "Merged"]
    engine: Literal["vLLM", "Swift"]


class EvaluateConfig(Model):
    """Input of the evaluate step."""

    endpoint: JobRef = Field(description="Identity of the ModelEndpoint.")
    version: str = Field(description="Version that wants the traffic.")
    job: str = Field(default="", description="FineTuneJob that made it.")
    gates: list[Evaluation] = Field(description="All of them must be open: the endpoint's own and the job's.")
    candidate: Target
    base: Target | None = Field(default=None, description="The base model without adapter, where the engine serves it.")
    current: Target | None = Field(default=None, description="The version that has the traffic.")
    storage: S3Storage
    uri: str = Field(description="s3:// directory for the results.")
    eval_loss: str | None = Field(default=None, description="Evaluation loss that the version's training ended with.")
    drift: DriftConfig | None = Field(default=None, description="Absent where the version is served as it was trained.")
    storage_timeout_seconds: int = Field(default=600, ge=1)


class MergeConfig(Model):
    """Input of the merge step."""

    model: ModelSpec
    storage: S3Storage
    adapter: AdapterRef
    uri: str = Field(description="s3:// directory for merged models; each has a directory of its own in it, named after its content.")
    cpu_threads: int = 1


class Live(Model):
    """Adapters come into the running engine and go. Of a ServeConfig this, `adapter` and `others` change while the pod runs."""

    max_adapters: int = Field(ge=1, description="Adapters that have room in memory at the same time, beside one that is being tried.")
    max_lora_rank: int | None = Field(default=None, description="Largest rank there is room for; absent: that of the adapters at the engine's start.")
    trial: list[NamedAdapter] | None = Field(default=None, description="Adapters under names that no user asks for: what is to have the traffic next.")


class AdapterState(Model):
    """What has become of an adapter under a name in one pod."""

    name: str
    manifest_sha256: str
    state: Literal["Served", "Waiting", "Refused"] = Field(description="Served: it has answered. Refused: it never will, as it is.")
    message: str = Field(default="", description="What it waits for, or why it is refused and what to do.")


class AdapterReport(Model):
    """What the sidecar of a pod with live adapters answers at ADAPTERS_PORT: adapters that are wanted, as the engine serves them now."""

    adapters: list[AdapterState]


class ServeConfig(Model):
    """Input of the fetch, serve, follow and ready steps of a serving pod."""

    model: ModelSpec
    storage: S3Storage
    adapter: AdapterRef
    merged: AdapterRef | None = Field(default=None, description="The adapter merged into its base, which is served instead of both; for Merged.")
    engine: Literal["vLLM", "Swift"]
    quantization: Literal["AsTrained", "None", "Merged"]
    served_name: str
    others: list[NamedAdapter] | None = Field(default=None, description="Further adapters on the same base, under names of their own.")
    live: Live | None = Field(default=None, description="Absent: the engine gets its adapters when it starts.")
    max_length: int
    cache: bool = Field(default=False, description="Keep the base model in the volume at CACHE_DIR, which the step fetch writes and the engine reads.")
    allow_cpu: bool = False
    cpu_threads: int = 1

    @property
    def adapters(self) -> list[NamedAdapter]:
        """All adapters in their order."""
        return [NamedAdapter(name=self.served_name, adapter=self.adapter), *(self.others or ())]
