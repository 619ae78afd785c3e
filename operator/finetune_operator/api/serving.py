"""How a version is served: sections that a FineTuneJob's inference and a ModelEndpoint share."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Model, Quantity
from finetune_runtime.contract.config import SERVED_BASE
from finetune_runtime.contract.spec import not_yet, rules

from .meta import GpuResource, ObjectName

PodToleration = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


_NOT_BASE = {"x-kubernetes-validations": [{"rule": f"self != '{SERVED_BASE}'", "message": f"'{SERVED_BASE}' is the base model's name: choose another one"}]}

ServedName = Annotated[
    str,
    Field(
        max_length=128,
        pattern=r"^([A-Za-z0-9][-A-Za-z0-9_./:@]*)?$",
        description="Model name in the OpenAI API; empty: the endpoint's name. The base model is served as 'base'.",
        json_schema_extra=_NOT_BASE,
    ),
]


AdapterName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9_./:@]*$",
        description="Model name in the OpenAI API.",
        json_schema_extra=_NOT_BASE,
    ),
]


class ServingResources(Model):
    """What a serving pod gets."""

    model_config = rules(not_yet("self.gpus == 1", "serving on more than one GPU", ".gpus"))
    gpus: int = Field(default=1, ge=1, le=16, description="GPUs of a serving pod.")
    gpu_resource: GpuResource = Field(default="nvidia.com/gpu", description="Extended resource that stands for a GPU.")
    cpu: Quantity = Field(default="2", description="CPU cores requested.")
    memory: Quantity = Field(default="16Gi", description="Memory limit in bytes.")
    cache_claim: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim that keeps base models for all pods that name it, also of other endpoints; ReadWriteMany where they run on several "
        "nodes. Absent: every new pod fetches the base model anew.",
    )
    scratch: Quantity = Field(default="60Gi", description="Size limit in bytes of the volume that holds base model and adapter.")
    node_selector: dict[str, str] = Field(default={}, max_length=32, description="Labels that a node must carry.")
    tolerations: list[PodToleration] = Field(default=[], max_length=32, description="Taints that the pod tolerates, as in a Pod's spec.")


Engine = Annotated[
    Literal["vLLM", "Swift"], Field(description="vLLM: fast, many requests at once. Swift: transformers through ms-swift, one request at a time.")
]
ServingQuantization = Annotated[
    Literal["AsTrained", "None", "Merged"],
    Field(
        description="AsTrained: the base model is quantised as in training, which is what the adapter learned on. None: 16-bit base; answers may differ. "
        "Merged: the adapter is merged into the 16-bit base first, which any engine serves at full speed; answers may differ, and no 'base' is beside it."
    ),
]
AdapterLoading = Annotated[
    Literal["AtStart", "Live"],
    Field(
        description="AtStart: pods get their adapters when they start, so that another adapter or name is new pods. Live: adapters come into running pods "
        "and go, in seconds and without a spare GPU; what else of the spec changes is new pods as before. Live needs engine vLLM."
    ),
]
NO_CURRENT = (
    "notWorseThanCurrent needs pods of the version that has the traffic, which strategy Recreate ends before the new one is asked: "
    "use notWorseThanBase or minPassRate, or another strategy"
)
NO_BASE = "notWorseThanBase needs the base model beside the adapter, which quantization Merged does not serve: use notWorseThanCurrent"


class ParentRef(Model):
    """A Gateway, or one of its listeners."""

    name: str = Field(min_length=1, max_length=253, description="Name of a Gateway of the Gateway API.")
    namespace: str | None = Field(
        default=None, min_length=1, max_length=63, description="Its namespace; absent: the endpoint's. Its listeners have to allow routes from here."
    )
    section_name: str | None = Field(default=None, min_length=1, max_length=253, description="One of its listeners; absent: all of them.")


Hostname = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")]
Percent = Annotated[int, Field(ge=1, le=99)]


class Canary(Model):
    """Shares of the traffic that a Gateway sends to a new version, one after another."""

    parent_refs: list[ParentRef] = Field(min_length=1, max_length=8, description="Gateways through which users come.")
    hostnames: list[Hostname] = Field(
        default=[], max_length=16, description="Host names of the endpoint there. Absent: all requests of the listeners, which can then serve nobody else."
    )
    steps: list[Percent] = Field(
        default=[10, 50],
        min_length=1,
        max_length=10,
        description="Shares in percent that the new version gets before it gets everything, each larger than the one before.",
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "self.isSorted() && self.all(a, self.exists_one(b, a == b))", "message": "each step must be larger than the one before"}
            ]
        },
    )
    step_seconds: int = Field(
        default=300,
        ge=1,
        le=86400,
        description="Seconds that a step lasts. When its pods crash or cease to answer, the old version gets all requests back.",
    )


class Strategy(Model):
    """How one version replaces another."""

    model_config = rules(
        {
            "rule": "self.type != 'Canary' || has(self.canary)",
            "message": "type Canary needs strategy.canary with the Gateway in parentRefs",
            "fieldPath": ".canary",
        },
        {
            "rule": "self.type == 'Canary' || !has(self.canary)",
            "message": "canary is for type Canary only: set strategy.type to Canary or remove it",
            "fieldPath": ".canary",
        },
    )
    type: Literal["BlueGreen", "Recreate", "Canary"] = Field(
        default="BlueGreen",
        description="BlueGreen: the new version is up, has answered and has passed the gate before traffic moves; needs as many spare GPUs for a while. "
        "Recreate: the old version's pods end first and come back when the new one fails; nobody is answered in between. "
        "Canary: like BlueGreen, and users who come through a Gateway are moved in steps.",
    )
    canary: Canary | None = Field(default=None, description="Gateway and steps of type Canary.")
    watch_seconds: int = Field(
        default=120,
        ge=0,
        le=86400,
        description="Seconds after the traffic has moved in which the old version's pods stay and get the traffic back when the new one's crash.",
    )
    timeout_seconds: int = Field(
        default=7200, ge=60, le=604800, description="Seconds that a new version may take to answer before it is given up, loading the model included."
    )
