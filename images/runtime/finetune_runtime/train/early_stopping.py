"""When a training no longer gets better. Standard library only: it runs in the training process."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

EARLY_STOPPING = "FINETUNE_EARLY_STOPPING"  # environment variable: a Rule; absent: never stop


@dataclass(frozen=True)
class Rule:
    """Stop after `patience` evaluations in a row whose loss is not at least `min_improvement` below the best one before."""

    patience: int
    min_improvement: float = 0.0

    def encode(self) -> str:
        """For the environment of the training process."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str | None) -> "Rule | None":
        """The rule of an environment variable, None where it is not set."""
        return Rule(**json.loads(text)) if text else None

    def stops(self, losses: Sequence[float]) -> bool:
        """Whether to stop after these evaluations, oldest first.

        Computed from all of them each time, so that a run that was interrupted and resumed stops where the unbroken one would.
        A loss that is not a number is not better than anything.
        """
        best, waited = math.inf, 0
        for loss in losses:
            if math.isfinite(loss) and (best == math.inf or loss < best - self.min_improvement):
                best, waited = loss, 0
            else:
                waited += 1
        return waited >= self.patience
