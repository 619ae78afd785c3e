"""When a training has gone wrong for good. Standard library only: it is read in the training process too."""

import math
from collections.abc import Mapping

WEIGHTS = "weights"  # beside the trainer's own log values: NaN where the adapter's weights are not all finite
LEFT_OUT = 3  # logged steps in a row whose gradients were no numbers. ms-swift leaves such a step out, so one bad row costs one step

# By the trainer's name, in words.
_VITAL = {"loss": "loss", "eval_loss": "evaluation loss", WEIGHTS: "largest weight of the adapter"}


def broken(values: Mapping[str, float]) -> str:
    """The first of the log values that is not finite although it has to be, as "loss became nan"; empty where all is well."""
    return next((f"{words} became {values[name]}" for name, words in _VITAL.items() if not math.isfinite(values.get(name, 0.0))), "")


class Divergence:
    """Reads a run's log values one after the other. `loss_scaling`: as float16 has it; gradients that overflow then lower the scale, which takes some steps."""

    def __init__(self, *, loss_scaling: bool) -> None:
        self._loss_scaling, self._left_out = loss_scaling, 0

    def seen(self, values: Mapping[str, float]) -> str:
        """What went wrong for good, as `broken` says it; empty where all is well."""
        if "grad_norm" in values and not self._loss_scaling:
            self._left_out = 0 if math.isfinite(values["grad_norm"]) else self._left_out + 1
        if self._left_out >= LEFT_OUT:
            return f"norm of the gradients became no number in {LEFT_OUT} logged steps one after the other, which taught nothing,"
        return broken(values)
