"""ModelEndpoint: long-lived, serves versions."""

from typing import Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.spec import ModelSpec, Storage, not_yet, rules

from .finetunejob import Engine, Evaluation, ServingQuantization, ServingResources
from .meta import NAME_RULES, Condition


class Candidate(Model):
    """A version proposed for serving."""

    job: str = Field(default="", max_length=63, description="FineTuneJob that made it.")
    job_uid: str = Field(default="", max_length=64, description="UID of that job.")
    adapter: AdapterRef = Field(description="The adapter to serve.")


class Strategy(Model):
    """How one version replaces another."""

    model_config = rules(not_yet("self.type == 'BlueGreen'", "a rollout other than BlueGreen", ".type"))
    type: Literal["BlueGreen", "Recreate", "Canary"] = Field(
        default="BlueGreen", description="BlueGreen: the new version is up and has answered before traffic moves; needs spare GPUs for a while."
    )


class ModelEndpointSpec(Model):
    """What is served and how. The newest candidate that becomes ready gets the traffic."""

    model_config = rules(
        not_yet("!has(self.gate)", "the evaluation gate", ".gate"),
        not_yet("!has(self.version)", "pinning a version", ".version"),
        not_yet("self.keepPrevious == 0", "keeping the previous version's pods", ".keepPrevious"),
        not_yet("self.autoRollback", "traffic to a version that is not ready", ".autoRollback"),
    )
    model: ModelSpec = Field(description="The base model; adapters trained on another one are refused.")
    storage: Storage = Field(description="Where adapters are read from.")
    engine: Engine = "vLLM"
    quantization: ServingQuantization = "AsTrained"
    replicas: int = Field(default=1, ge=0, le=1000, description="Serving pods.")
    max_length: int = Field(default=1024, ge=16, le=1048576, description="Longest conversation in tokens, prompt and answer together.")
    served_name: str = Field(
        default="", max_length=128, description="Model name in the OpenAI API; empty: the endpoint's name. The base model is always served as 'base'."
    )
    resources: ServingResources = Field(default=ServingResources(), description="What a serving pod gets.")
    strategy: Strategy = Field(default=Strategy(), description="How one version replaces another.")
    gate: Evaluation | None = Field(default=None, description="Checks that a version must pass before it gets traffic; absent: none.")
    version: str | None = Field(default=None, max_length=64, description="Version to serve; absent: the newest that became ready.")
    keep_previous: int = Field(default=0, ge=0, le=10, description="Previous versions whose pods are kept for a fast rollback.")
    auto_rollback: bool = Field(default=True, description="A version that never becomes ready gets no traffic; the current one goes on.")
    candidate: Candidate | None = Field(default=None, description="Version proposed by a FineTuneJob or by hand.")


class VersionStatus(Model):
    """A version that has pods."""

    name: str = Field(description="Name of its Deployment.")
    role: Literal["Current", "Candidate"] = Field(description="Current gets the traffic; Candidate is on its way.")
    job: str = Field(default="", description="FineTuneJob that made it.")
    job_uid: str = Field(default="", description="UID of that job.")
    adapter: AdapterRef = Field(description="The adapter it serves.")


class ModelEndpointStatus(Model):
    """Observed state."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status was computed from.")
    url: str = Field(default="", description="Base URL of the OpenAI-compatible API inside the cluster.")
    served_name: str = Field(default="", description="Model name in the OpenAI API.")
    ready_replicas: int = Field(default=0, description="Pods of the current version that have answered a request.")
    replicas: int = Field(default=0, description="Pods of the current version.")
    selector: str = Field(default="", description="Label selector of the endpoint's pods.")
    reason: str = Field(default="", description="Reason of the condition that matters now.")
    versions: list[VersionStatus] = Field(default=[], max_length=16, description="Versions that have pods.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Progressing.",
    )

    def current(self) -> VersionStatus | None:
        """Version that gets the traffic."""
        return next((v for v in self.versions if v.role == "Current"), None)


class ModelEndpoint(Model):
    """ModelEndpoint serves one adapter version after another under one stable name."""

    model_config = rules(*NAME_RULES)
    spec: ModelEndpointSpec = Field(description="What is served and how.")
    status: ModelEndpointStatus = Field(default=ModelEndpointStatus(), description="Observed state.")


PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason"},
    {"name": "Replicas", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {"name": "Version", "type": "string", "jsonPath": ".status.versions[?(@.role=='Current')].name"},
    {"name": "Job", "type": "string", "jsonPath": ".status.versions[?(@.role=='Current')].job"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Engine", "type": "string", "jsonPath": ".spec.engine", "priority": 1},
]
