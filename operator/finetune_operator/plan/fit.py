"""Whether a training fits the GPUs there are: asked once the model is known, before anything is queued."""

from collections.abc import Mapping

from pydantic.alias_generators import to_camel

from finetune_operator import names
from finetune_operator.api.finetunejob import FineTuneJobSpec, Resources
from finetune_operator.api.jobstatus import DatasetStatus, EstimateStatus, RunStatus
from finetune_operator.api.meta import ConditionType
from finetune_operator.observe import NodeView
from finetune_operator.reasons import Reason
from finetune_runtime.contract import fast_sizing, sizing
from finetune_runtime.contract.base import parse_quantity
from finetune_runtime.contract.model_shape import ModelShape
from finetune_runtime.contract.spec import Training, Tuning

from .draft import Draft

LOOK_AGAIN = 60.0  # seconds; somebody may add a larger node, or annotate the job
MIB = 2**20


def available(resources: Resources, nodes: tuple[NodeView, ...]) -> tuple[int, str] | None:
    """(bytes, where) of the largest GPU that the job may use; None when nobody says."""
    if resources.gpu_memory:
        return int(parse_quantity(resources.gpu_memory)), "spec.resources.gpuMemory"
    label, found = names.memory_label(resources.gpu_resource), []
    for node in nodes:
        wanted = resources.node_selector.items() <= node.labels.items()
        if wanted and node.gpus >= resources.gpus and (memory := node.labels.get(label, "")).isdigit():
            found.append((int(memory) * MIB, f"node {node.name}"))
    return max(found, default=None)


def _longest(data: DatasetStatus | None) -> int | None:
    return (data.longest if data else 0) or None


def takes_fast_path(run: RunStatus | None) -> bool:
    """Whether the training is going to, as far as the check of model and data, or an earlier pod, could tell."""
    return run is not None and run.fast_path is not None and not run.fast_path.reason


def _fast_job(shape: ModelShape, tuning: Tuning, training: Training, data: DatasetStatus | None, gpus: int) -> fast_sizing.Job:
    longest = min(_longest(data) or training.max_length, training.max_length)
    mean = min(data.tokens / data.train_rows, longest) if data and data.train_rows and data.tokens else longest
    return fast_sizing.Job(shape, tuning, training, fast_sizing.RowLengths(longest, mean), gpus)


def estimate(shape: ModelShape, spec: FineTuneJobSpec, data: DatasetStatus | None, *, fast: bool = False) -> sizing.Estimate:
    """Memory of one GPU for this job with the rows at a time that it asks for, or with one where it leaves that to us. `fast`: on the fast path."""
    gpus = spec.resources.gpus
    if fast:
        return fast_sizing.requirement(_fast_job(shape, spec.tuning, spec.training, data, gpus))
    return sizing.estimate(shape, spec.tuning, spec.training, micro_batch=sizing.rows(spec.training, gpus), longest=_longest(data), gpus=gpus)


def _gib(size: float) -> str:
    return f"{size / sizing.GIB:.1f} GiB"


def _mebibytes(size: float) -> str:
    return f"{round(size / MIB)}Mi"


def _too_small(shape: ModelShape, spec: FineTuneJobSpec, data: DatasetStatus | None, needs: int, has: int, where: str, *, fast: bool) -> str:
    gpus = spec.resources.gpus
    required = (lambda tuning, training: fast_sizing.required(_fast_job(shape, tuning, training, data, gpus))) if fast else None
    change = sizing.smallest_change(shape, spec.tuning, spec.training, has, longest=_longest(data), gpus=gpus, required=required)
    cure = f"in a new job, {change}" if change else "use a GPU with more memory"
    return (
        f"training needs about {_gib(needs)} of GPU memory, but the largest GPU has {_gib(has)} ({where}): {cure}; "
        f"or try it as it is with the annotation {names.ANNOTATION_IGNORE_FIT}=true"
    )


def check_fit(draft: Draft) -> bool:
    """State Fits. False: the job must not be queued."""
    spec, status, conditions = draft.seen.spec, draft.status, draft.conditions
    shape, data = status.model, status.dataset
    if shape is None:
        message = "the model's files do not say how large its layers are, so its need of GPU memory is not estimated"
        conditions.set(ConditionType.FITS, "Unknown", Reason.MODEL_SHAPE_UNKNOWN, message)
        return True
    fast = takes_fast_path(status.run)
    found = estimate(shape, spec, data, fast=fast)
    has = available(spec.resources, draft.seen.nodes or ())
    parts: Mapping[str, int] = found.parts
    shown = EstimateStatus(
        required=_mebibytes(found.required),
        available=_mebibytes(has[0]) if has else None,
        parts={to_camel(name): _mebibytes(size) for name, size in parts.items() if size >= MIB / 2},
    )
    asked_before, fits = status.estimate == shown, conditions.get(ConditionType.FITS)
    draft.update(estimate=shown)
    if has is None:
        gpus, resource = spec.resources.gpus, spec.resources.gpu_resource
        message = (
            f"training needs about {_gib(found.required)} of GPU memory; no node that offers {f'{gpus} of ' if gpus > 1 else ''}{resource} carries the label "
            f"{names.memory_label(resource)}, so there is nothing to compare it with: set spec.resources.gpuMemory to have it checked"
        )
        conditions.set(ConditionType.FITS, "Unknown", Reason.GPU_MEMORY_UNKNOWN, message)
        return True
    memory, where = has
    if found.required <= memory:
        conditions.set(ConditionType.FITS, "True", Reason.FITS, f"training needs about {_gib(found.required)} of {_gib(memory)} of GPU memory ({where})")
        return True
    if draft.seen.ignore_fit:
        message = f"training needs about {_gib(found.required)} of {_gib(memory)} of GPU memory ({where}); it is tried all the same, as the annotation says"
        conditions.set(ConditionType.FITS, "Unknown", Reason.FIT_IGNORED, message)
        return True
    # The search for a cure is the longest computation here, and nothing has changed since it was made.
    known = fits.message if asked_before and fits and fits.status == "False" else ""
    conditions.set(ConditionType.FITS, "False", Reason.GPU_TOO_SMALL, known or _too_small(shape, spec, data, found.required, memory, where, fast=fast))
    draft.requeue(LOOK_AGAIN)
    return False


def minimum_mebibytes(draft: Draft) -> int | None:
    """Memory (MiB) that a node's label must at least say, for the node affinity; None where no choice is to be made.

    A job that was let in with the annotation stays in without it: Fits is not asked again once a training has begun.
    """
    estimated, fits = draft.status.estimate, draft.conditions.get(ConditionType.FITS)
    if estimated is None or draft.seen.ignore_fit or (fits and fits.reason == Reason.FIT_IGNORED):
        return None
    return round(parse_quantity(estimated.required) / MIB)
