"""Conditions and identities, shared by both kinds."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from finetune_runtime.contract.base import Model

Status = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """Types of conditions; the truth from which the phase is derived."""

    ACCEPTED = "Accepted"
    DATA_READY = "DataReady"
    TRAINED = "Trained"
    DEPLOYED = "Deployed"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    READY = "Ready"
    PROGRESSING = "Progressing"


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
