"""ModelEndpoint: long-lived, serves versions."""

from typing import Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult, Figure
from finetune_runtime.contract.spec import ModelSpec, Storage, rules

from .meta import NAME_RULES, Condition
from .serving import NO_BASE, NO_CURRENT, AdapterLoading, AdapterName, Engine, ServedName, ServingQuantization, ServingResources, Strategy


class Candidate(Model):
    """A version proposed for serving."""

    job: str = Field(default="", max_length=63, description="FineTuneJob that made it.")
    job_uid: str = Field(default="", max_length=64, description="UID of that job.")
    adapter: AdapterRef = Field(description="The adapter to serve.")
    eval_loss: Figure | None = Field(default=None, description="Evaluation loss that its training ended with.")
    evaluation: Evaluation | None = Field(default=None, description="Gate of the job that made it; it must pass this one and the endpoint's own.")
    model_bytes: int | None = Field(default=None, ge=0, description="Bytes of the base model's weights, by which its pods get time to load.")


class NamedCandidate(Candidate):
    """An adapter that is to be served beside, under a name of its own."""

    name: AdapterName


# One engine holds them all, each with memory of its own on the GPU.
MAX_ADAPTERS = 15  # beside that of spec.candidate


class ModelEndpointSpec(Model):
    """What is served and how. A candidate that answers and passes the gate gets the traffic."""

    model_config = rules(
        {"rule": "self.quantization != 'Merged' || !has(self.gate) || !self.gate.notWorseThanBase", "fieldPath": ".gate", "message": NO_BASE},
        {
            "rule": "self.strategy.type != 'Recreate' || self.adapterLoading == 'Live' || !has(self.gate) || !self.gate.notWorseThanCurrent",
            "fieldPath": ".gate",
            "message": NO_CURRENT,
        },
        {
            "rule": "self.quantization != 'Merged' || size(self.adapters) == 0",
            "message": "merged weights are one model: set spec.quantization to AsTrained or None, or give each adapter an endpoint of its own",
            "fieldPath": ".adapters",
        },
        {
            "rule": "self.engine == 'vLLM' || size(self.adapters) == 0",
            "message": "engine Swift serves one adapter only: set spec.engine to vLLM, or give each adapter an endpoint of its own",
            "fieldPath": ".adapters",
        },
        {
            "rule": "self.adapterLoading != 'Live' || self.engine == 'vLLM'",
            "message": "engine Swift gets its adapter when it starts: set spec.engine to vLLM, or spec.adapterLoading to AtStart",
            "fieldPath": ".adapterLoading",
        },
        {
            "rule": "self.adapterLoading != 'Live' || self.quantization != 'Merged'",
            "message": "merged weights are loaded when an engine starts: set spec.quantization to AsTrained or None, or spec.adapterLoading to AtStart",
            "fieldPath": ".adapterLoading",
        },
        {
            "rule": "self.adapterLoading != 'Live' || self.strategy.type != 'Canary'",
            "message": "adapters that are loaded live share their pods, so that no share of the requests can be split off: "
            "set spec.strategy.type to BlueGreen, or spec.adapterLoading to AtStart",
            "fieldPath": ".adapterLoading",
        },
        {
            "rule": "self.adapters.all(a, a.name != self.servedName)",
            "message": "spec.servedName is the name of spec.candidate: give the adapter another name, or propose it as spec.candidate",
            "fieldPath": ".adapters",
        },
    )
    model: ModelSpec = Field(description="The base model; adapters trained on another one are refused.")
    storage: Storage = Field(description="Where adapters are read from and evaluations are written to.")
    engine: Engine = "vLLM"
    quantization: ServingQuantization = "AsTrained"
    adapter_loading: AdapterLoading = "AtStart"
    max_adapters: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Adapters that have room on the GPU at the same time where adapterLoading is Live; memory for each, and for one that is being tried, is "
        "taken when the engine starts. More than that take turns, which costs time.",
    )
    max_lora_rank: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Largest rank of an adapter that there is room for where adapterLoading is Live; absent: that of the adapters which the pods start with.",
    )
    replicas: int = Field(default=1, ge=0, le=1000, description="Serving pods.")
    max_length: int = Field(default=1024, ge=16, le=1048576, description="Longest conversation in tokens, prompt and answer together.")
    served_name: ServedName = ""
    resources: ServingResources = Field(default=ServingResources(), description="What a serving pod gets.")
    strategy: Strategy = Field(default=Strategy(), description="How one version replaces another.")
    gate: Evaluation | None = Field(default=None, description="Checks that a version must pass before it gets traffic; absent: none.")
    version: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Version to serve, by its name or its job's as in status.versions; absent: the newest candidate. This is how to roll back by hand.",
    )
    keep_previous: int = Field(
        default=0, ge=0, le=10, description="Previous versions of which one pod is kept after strategy.watchSeconds, for a fast rollback."
    )
    auto_rollback: bool = Field(
        default=True,
        description="Give a version up that does not answer in strategy.timeoutSeconds, and take the traffic back from one whose pods crash within "
        "strategy.watchSeconds. False: wait for you. A closed gate keeps traffic off in any case.",
    )
    candidate: Candidate | None = Field(default=None, description="Version proposed by a FineTuneJob or by hand.")
    adapters: list[NamedCandidate] = Field(
        default=[],
        max_length=MAX_ADAPTERS,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="Adapters that the same pods serve beside that of candidate, under names of their own: proposed by FineTuneJobs with another "
        "inference.servedName, or by hand. Remove one, and it is served no more as soon as there is something else to serve.",
    )


Role = Literal["Current", "Candidate", "Previous", "Rejected", "Retired"]


class ServedAdapter(Model):
    """An adapter of a version that is there beside the one that the version was made for."""

    name: str | None = Field(default=None, max_length=128, description="Model name in the OpenAI API; absent: the endpoint's own.")
    job: str = Field(default="", description="FineTuneJob that made it.")
    job_uid: str = Field(default="", description="UID of that job.")
    adapter: AdapterRef = Field(description="The adapter.")
    eval_loss: Figure | None = Field(default=None, description="Evaluation loss that its training ended with.")
    gate: str | None = Field(default=None, max_length=64, description="Digest of the gate that the evaluation belongs to.")
    evaluation: EvaluationResult | None = Field(default=None, description="What came of the gate.")


class VersionStatus(Model):
    """A version: its adapter served as the spec said."""

    name: str = Field(description="Name of the version, and of its Deployment.")
    host: str | None = Field(
        default=None, max_length=63, description="Deployment in whose pods it is, which it shares with versions of other adapters; with adapterLoading Live."
    )
    public: bool | None = Field(
        default=None, description="Whether these pods serve its adapters under the names that users ask, or are told to; one version of a host."
    )
    role: Role = Field(
        description="Current gets the traffic; Candidate is on its way; Previous had it and still has pods; Rejected was given up; Retired has no pods."
    )
    job: str = Field(default="", description="FineTuneJob that made it.")
    job_uid: str = Field(default="", description="UID of that job.")
    adapter: AdapterRef = Field(description="The adapter it serves; where it serves several, the one that it was made for.")
    served_name: str | None = Field(default=None, max_length=128, description="Model name of that adapter in the OpenAI API; absent: the endpoint's own.")
    own_name: str | None = Field(default=None, max_length=128, description="The endpoint's own model name when it was made, by which its pods go.")
    others: list[ServedAdapter] | None = Field(default=None, max_length=16, description="Adapters that it serves beside, under other names.")
    eval_loss: Figure | None = Field(default=None, description="Evaluation loss that its training ended with.")
    model_bytes: int | None = Field(default=None, description="Bytes of the base model's weights.")
    merged: AdapterRef | None = Field(default=None, description="The adapter merged into its base, which it serves instead of both; with quantization Merged.")
    since: str = Field(default="", description="When it came into this role.")
    weight: int | None = Field(default=None, description="Share in percent of the requests through the Gateway that it gets; strategy Canary only.")
    step: int | None = Field(
        default=None, description="Step of strategy.canary that it has reached as a candidate, in percent; 0: it had to give its share back."
    )
    step_since: str | None = Field(default=None, description="When it reached that step.")
    reason: str | None = Field(default=None, max_length=64, description="Why it was given up.")
    message: str | None = Field(default=None, max_length=2048, description="What happened and what to do about it.")
    served: bool | None = Field(default=None, description="Whether it has had the traffic.")
    asked: str | None = Field(
        default=None,
        max_length=64,
        description="Digest of what was asked for when it was given up; it is tried again when that changes.",
    )
    gate: str | None = Field(default=None, max_length=64, description="Digest of the gate that the evaluation belongs to.")
    evaluation: EvaluationResult | None = Field(default=None, description="What came of the gate.")

    @property
    def place(self) -> str:
        """Name of the Deployment, the ConfigMap and the Service by which it is served."""
        return self.host or self.name

    @property
    def trusted(self) -> bool:
        """Whether it has had the traffic; records of older operators do not say so."""
        return bool(self.served) or self.role in ("Current", "Previous")


class ModelEndpointStatus(Model):
    """Observed state."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status was computed from.")
    url: str = Field(default="", description="Base URL of the OpenAI-compatible API inside the cluster.")
    served_name: str = Field(default="", description="Model name in the OpenAI API.")
    served_names: list[str] = Field(default=[], max_length=16, description="Model names of all adapters that are served; the base model is 'base'.")
    ready_replicas: int = Field(default=0, description="Pods of the current version that have answered a request.")
    replicas: int = Field(default=0, description="Pods of the current version.")
    selector: str = Field(default="", description="Label selector of the endpoint's pods.")
    reason: str = Field(default="", description="Reason of the condition that matters now.")
    versions: list[VersionStatus] = Field(default=[], max_length=40, description="Versions that have pods, and the last ones that had.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Progressing; Routed with strategy Canary.",
    )

    def current(self) -> VersionStatus | None:
        """Version that gets the traffic."""
        return next((v for v in self.versions if v.role == "Current"), None)


class ModelEndpoint(Model):
    """ModelEndpoint serves one adapter version after another under one stable name."""

    model_config = rules(
        *NAME_RULES,
        {
            "rule": "self.spec.servedName != '' || self.spec.adapters.all(a, a.name != self.metadata.name)",
            "message": "the endpoint's name is the name of spec.candidate: give the adapter another name, or propose it as spec.candidate",
            "fieldPath": ".spec.adapters",
        },
    )
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
