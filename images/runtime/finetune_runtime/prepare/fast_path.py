"""Whether model and job can take the fast path, known before a GPU is taken."""

from collections.abc import Mapping
from typing import Any

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import unsupported
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import FastPath


def check_fast_path(config: JobConfig, model_config: Mapping[str, Any]) -> str | None:
    """Why they cannot; empty when they can, None where the job wants none. Raises StepError InvalidConfig for a job that requires it."""
    if config.training.fast_path is FastPath.OFF:
        return None
    reason = unsupported(model_config, config.tuning, config.training)
    if reason and config.training.fast_path is FastPath.REQUIRED:
        raise StepError(
            Exit.INVALID_CONFIG,
            Reason.INVALID_CONFIG,
            f"training.fastPath is Required, and {config.model.source} with this job cannot take it ({reason}). Set it to Auto to train without it, or "
            "change what stands in its way (docs/fast-path.md).",
        )
    return reason
