"""The settings that the trainer chooses, for a budget that need not be the GPU at hand's."""

from collections.abc import Sequence
from statistics import fmean, pstdev

from finetune_runtime.contract import fast_sizing
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FastPlan, unsupported
from finetune_runtime.contract.fast_sizing import RowLengths

from .workload import Trained


def plan_for(model: Trained, config: JobConfig, lengths: Sequence[int], budget: int, *, gpus: int = 1) -> FastPlan:
    """For rows of so many tokens and `budget` bytes that torch may reserve on each GPU. Raises ValueError when the job takes no fast path, with the reason."""
    if reason := unsupported(model.config, config.tuning, config.training):
        raise ValueError(reason)
    rows = RowLengths(max(lengths), fmean(lengths), pstdev(lengths))
    return fast_sizing.plan(fast_sizing.Job(model.shape, config.tuning, config.training, rows, gpus), budget)
