"""When a training has gone wrong for good. Standard library only: it is read in the training process too."""

import math
from collections.abc import Mapping

WEIGHTS = "weights"  # beside the trainer's own log values: NaN where the adapter's weights are not all finite

# By the trainer's name, in words.
_VITAL = {"loss": "loss", "eval_loss": "evaluation loss", "grad_norm": "norm of the gradients", WEIGHTS: "largest weight of the adapter"}


def broken(values: Mapping[str, float], *, loss_scaling: bool) -> str:
    """The first of the log values that is not finite although it has to be, as "loss became nan"; empty where all is well.

    `loss_scaling`: as float16 has it. Gradients that overflow are then no fault: the step is left out and the scale lowered.
    """
    vital = [name for name in _VITAL if name in values and not (loss_scaling and name == "grad_norm")]
    return next((f"{_VITAL[name]} became {values[name]}" for name in vital if not math.isfinite(values[name])), "")
