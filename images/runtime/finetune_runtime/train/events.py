"""What the callback in the training process tells the supervisor: one JSON document a line through an inherited pipe.

Imported on both sides, so it depends on the standard library only.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum

EVENTS_FD = "FINETUNE_EVENTS_FD"  # environment variable: descriptor of the pipe's writing end
STAGING = "FINETUNE_STAGING"  # environment variable: directory in which the callback leaves checkpoints for the supervisor


class Kind(StrEnum):
    """What happened."""

    BEGIN = "begin"
    LOG = "log"
    EVALUATING = "evaluating"
    EVALUATED = "evaluated"
    SAVING = "saving"
    SAVED = "saved"
    ANSWERING = "answering"
    END = "end"


@dataclass(frozen=True)
class Event:
    """`step` of `total_steps`; `values` are the trainer's log values under its own names; `path` is the staged checkpoint of SAVED.

    `final`: nothing is left to train after this checkpoint, because it is the last step or because the training stopped early.
    """

    kind: Kind
    step: int
    total_steps: int
    epoch: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    memory_gib: float = 0.0
    path: str = ""
    final: bool = False

    def encode(self) -> str:
        """One line without its end. Values that are not finite are written as NaN and Infinity."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(line: str) -> "Event":
        """The event of a line. Raises ValueError or TypeError for anything else."""
        fields = json.loads(line)
        return Event(**fields | {"kind": Kind(fields["kind"])})
