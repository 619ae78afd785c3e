"""Conditions and identities, shared by both kinds."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_runtime.contract.base import Model

Status = Literal["True", "False", "Unknown"]

# Names of Services and, up to the limit of 63 characters, of Jobs and pods are derived from an object's name.
_MAX_NAME = 52
_NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
ObjectName = Annotated[str, Field(pattern=_NAME_PATTERN, max_length=_MAX_NAME)]
# An extended resource. With .memory it is a label of nodes.
_GPU_RESOURCE = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,54}[A-Za-z0-9])?$"
GpuResource = Annotated[str, Field(pattern=_GPU_RESOURCE, max_length=253)]
NAME_RULES: list[dict[str, Any]] = [
    {
        "rule": f"size(self.metadata.name) <= {_MAX_NAME}",
        "message": f"metadata.name may have at most {_MAX_NAME} characters: names of pods, Jobs and Services are derived from it",
    },
    {
        "rule": f"self.metadata.name.matches('{_NAME_PATTERN}')",
        "message": "metadata.name must consist of lower-case letters, digits and dashes and begin with a letter: a Service is named after it",
    },
]


class ConditionType(StrEnum):
    """Types of conditions; the truth from which the phase is derived."""

    ACCEPTED = "Accepted"
    DATA_READY = "DataReady"
    FITS = "Fits"
    QUOTA_RESERVED = "QuotaReserved"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    DEPLOYED = "Deployed"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    READY = "Ready"
    ROUTED = "Routed"
    PROGRESSING = "Progressing"
    # For tools that know kstatus (helm --wait, Argo CD, Flux): there only while they are true.
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(Model):
    """metav1.Condition."""

    type: str = Field(min_length=1, max_length=316, description="Type, in CamelCase.")
    status: Status = Field(description="True, False or Unknown.")
    reason: str = Field(min_length=1, max_length=1024, description="Machine-readable cause, in CamelCase.")
    message: str = Field(default="", max_length=32768, description="What happened and what to do about it.")
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"}, description="When the status last flipped.")
    observed_generation: int = Field(default=0, ge=0, description="Generation of the spec that this condition was computed from.")


class Owner(Model):
    """Identity of an object that owns children."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int = 0
