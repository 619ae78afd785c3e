"""How a version is served: sections that a FineTuneJob's inference and a ModelEndpoint share."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Model, Quantity
from finetune_runtime.contract.config import SERVED_BASE
from finetune_runtime.contract.spec import not_yet, rules

from .meta import ObjectName

PodToleration = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


ServedName = Annotated[
    str,
    Field(
        max_length=128,
        pattern=r"^([A-Za-z0-9][-A-Za-z0-9_./:@]*)?$",
        description="Model name in the OpenAI API; empty: the endpoint's name. The base model is always served as 'base'.",
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": f"self != '{SERVED_BASE}'", "message": f"'{SERVED_BASE}' is the base model's name: choose another one"}]
        },
    ),
]


class ServingResources(Model):
    """What a serving pod gets."""

    model_config = rules(not_yet("self.gpus == 1", "serving on more than one GPU", ".gpus"))
    gpus: int = Field(default=1, ge=1, le=16, description="GPUs of a serving pod.")
    gpu_resource: str = Field(default="nvidia.com/gpu", max_length=253, description="Extended resource that stands for a GPU.")
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
    Literal["AsTrained", "None"],
    Field(description="AsTrained: the base model is quantised as in training, which is what the adapter learned on. None: 16-bit base; answers may differ."),
]


class Strategy(Model):
    """How one version replaces another."""

    model_config = rules(not_yet("self.type != 'Canary'", "a rollout by shares of the traffic", ".type"))
    type: Literal["BlueGreen", "Recreate", "Canary"] = Field(
        default="BlueGreen",
        description="BlueGreen: the new version is up, has answered and has passed the gate before traffic moves; needs as many spare GPUs for a while. "
        "Recreate: the old version's pods end first and come back when the new one fails; nobody is answered in between.",
    )
    watch_seconds: int = Field(
        default=120,
        ge=0,
        le=86400,
        description="Seconds after the traffic has moved in which the old version's pods stay and get the traffic back when the new one's crash.",
    )
    timeout_seconds: int = Field(
        default=7200, ge=60, le=604800, description="Seconds that a new version may take to answer before it is given up, loading the model included."
    )
