"""The trainer's side of the fast path: which plan a training process gets, what it answered, and what follows from that."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_runtime.contract import fast_sizing
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import (
    FAST_PLAN,
    KEEP_ALL,
    UNSUPPORTED,
    FastOutcome,
    FastPathStatus,
    FastPlan,
    described,
    outcome_path,
    unsupported,
)
from finetune_runtime.contract.fast_sizing import Job, Numbers, RowLengths
from finetune_runtime.contract.model_shape import from_config
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import FastPath as Wanted
from finetune_runtime.hardware import Hardware

from . import microbatch

log = logging.getLogger(__name__)

NO_GPU = "no CUDA GPU"
_CORRECTION = (0.9, 1.5)  # a run whose peak is farther from its prediction has met something else


class FastPath:
    """One run's fast path. Its plan changes when a process runs out of memory, and goes when a process cannot take it."""

    def __init__(self, config: JobConfig, hardware: Hardware, model: Path, dataset: Path, prepared: Manifest, earlier: Mapping[str, Any] | None) -> None:
        """`model`, `dataset`: local directories. `prepared`: the dataset's manifest. `earlier`: details of the checkpoint to go on from; None: a new run.

        Raises StepError InvalidConfig for a job that requires the fast path and cannot take it.
        """
        self._wanted, self._source = config.training.fast_path, config.model.source
        self._usual = Numbers("float32", config.training.extra_args.get("optim", fast_sizing.FULL.optimizer))  # ms-swift's own way
        self._numbers = _numbers(earlier) or self._usual if earlier is not None else None  # None: nothing is decided yet
        self._plan: FastPlan | None = None
        self._file = Path()
        self._outcome: FastOutcome | None = None
        self._stepped_down = bool((earlier or {}).get("fastPath", {}).get("steppedDown"))
        self.reason = ""
        if self._wanted is Wanted.OFF:
            return
        model_config = _read(model / "config.json")
        shape = from_config(model_config) if isinstance(model_config, dict) else None
        reason = unsupported(model_config, config.tuning, config.training) if shape else f"{UNSUPPORTED}config.json without the model's sizes"
        if reason or shape is None or (reason := self._lacking(hardware)):
            self._refuse(reason)
        else:
            rows = row_lengths(prepared.details, _read(dataset / "report.json"), config.training.max_length)
            self._job = Job(shape, config.tuning, config.training, rows, config.gpus, self._numbers, _correction(earlier, rows))
            self._plan = self._first(hardware, earlier) if hardware.gpus else _on_cpu(self._job, config)
            log.info("fast path: %s", self.status)

    @property
    def plan(self) -> FastPlan | None:
        """What the next training process gets; None: ms-swift's own way."""
        return self._plan

    @property
    def status(self) -> FastPathStatus | None:
        """For status and report; None: the job wants none."""
        if self._plan:
            return described(self._plan, self._outcome)
        return FastPathStatus(used=False, reason=self.reason) if self.reason else None

    @property
    def may_be_left(self) -> bool:
        """Whether there is a plan, and a process without it could go on."""
        return self._plan is not None and self._wanted is Wanted.AUTO and self._numbers in (None, self._usual)

    @property
    def in_short(self) -> str | None:
        """For progress reports: used, or why not; None: nothing to say."""
        status = self.status
        return None if status is None else status.reason or ("used" if status.used else None)

    @property
    def details(self) -> dict[str, object]:
        """What a checkpoint remembers, so that the run goes on from it with the same types, and in memory that is known to be enough."""
        plan, outcome = self._plan, self._outcome
        if plan is None or outcome is None or not outcome.used:
            return {}
        came_down = bool(outcome.keep) and outcome.keep != plan.keep  # in the process, without us
        return {
            "fastPath": {
                "loraDtype": plan.lora_dtype, "optimizer": plan.optimizer, "masters": plan.masters, "microBatch": plan.micro_batch,
                "predictedBytes": int(0.9 * plan.predicted_bytes) if came_down else plan.predicted_bytes, "measuredBytes": outcome.measured_bytes,
                "correction": self._job.correction, "steppedDown": self._stepped_down or came_down,
            }
        }  # fmt: skip

    def offer(self, directory: Path) -> dict[str, str]:
        """Leaves the plan for the next process; returns its environment variables."""
        self._outcome = None
        if self._plan is None:
            return {}
        self._file = directory / "fast-plan.json"
        outcome_path(self._file).unlink(missing_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(self._plan.model_dump_json(by_alias=True), encoding="utf-8")
        partial.replace(self._file)
        return {FAST_PLAN: str(self._file)}

    def look(self) -> None:
        """Reads what the process has answered so far: at any step layers may have to keep less. Called at each of its events."""
        if self._plan is None:
            return
        try:
            found = FastOutcome.model_validate_json(outcome_path(self._file).read_bytes())
        except (OSError, ValidationError):
            return
        if found != self._outcome:
            self._outcome = found
            log.info("fast path: %s", self.status)

    def declined(self) -> str:
        """Why the process that has begun to train does not take the fast path; empty when it does, or when it got no plan."""
        if self._plan is None:
            return ""
        self.look()
        if self._outcome is None:
            return "the plugin did not answer"
        return "" if self._outcome.used else self._outcome.reason or "the plugin did not say why"

    def give_up(self, reason: str) -> None:
        """The next process takes ms-swift's own way. Raises StepError where it must not, or cannot go on from what the fast path left."""
        if self._numbers not in (None, self._usual):
            raise StepError(
                Exit.CRASH,
                Reason.TRAINING_CRASHED,
                f"The last checkpoint was made on the fast path, and cannot be gone on from without it ({reason}): set training.fastPath to Off in a new job.",
            )
        self._refuse(reason)

    def saved(self) -> None:
        """A checkpoint is there: from now on its types stay."""
        self._numbers = fast_sizing.numbers_of(self._plan) if self._plan else self._usual
        if self._plan:
            self._job = self._corrected(self._numbers)

    def shrink(self, *, loading: bool) -> FastPlan | None:
        """The plan after an out-of-memory error; None when there is no smaller one. `loading`: no step was begun, so that only the least may help."""
        if self._plan is None:
            raise ValueError("there is no plan to come down from")
        self._job = self._corrected(self._numbers)
        following = fast_sizing.smaller(self._job, self._plan, at_once=loading)
        if following:
            self._plan, self._outcome, self._stepped_down = following, None, True
        return following

    def _first(self, hardware: Hardware, earlier: Mapping[str, Any] | None) -> FastPlan:
        least = min(gpu.free or gpu.memory for gpu in hardware.gpus)  # all processes go by one plan
        budget = fast_sizing.usable(least, self._job.gpus)
        before = (earlier or {}).get("fastPath", {})
        if before.get("steppedDown") and (known := before.get("predictedBytes")):
            budget = min(budget, fast_sizing.budget_for(known))
        return fast_sizing.plan(self._job, budget)

    def _corrected(self, numbers: Numbers | None) -> Job:
        """The job with what the first step showed. Only upwards: a prediction that was too high cost nothing but speed."""
        job = self._job
        measured = self._outcome.measured_bytes if self._outcome else 0
        factor = max(1.0, _within(job.correction * measured / self._plan.predicted_bytes)) if measured and self._plan and self._plan.predicted_bytes else 0
        return replace(job, numbers=numbers, correction=max(job.correction, factor))

    def _lacking(self, hardware: Hardware) -> str:
        if hardware.cpu_only:
            return "" if self._wanted is Wanted.REQUIRED else NO_GPU  # there is a way on the CPU, for tests: it is exact, and not faster
        return "" if hardware.bfloat16 else f"{UNSUPPORTED}a GPU without bfloat16 ({hardware})"

    def _refuse(self, reason: str) -> None:
        if self._wanted is Wanted.REQUIRED:
            raise StepError(
                Exit.INVALID_CONFIG,
                Reason.INVALID_CONFIG,
                f"training.fastPath is Required, and the training of {self._source} cannot take it ({reason}). Set it to Auto in a new job, to train without.",
            )
        log.warning("the fast path is not taken: %s", reason)
        self._plan, self.reason = None, reason


def row_lengths(details: Mapping[str, Any], report: Any, max_length: int) -> RowLengths:
    """Lengths of the training rows, as the prepare step measured them; the longest that the job allows where it says nothing.

    `details`: of the dataset's manifest. `report`: its report.json.
    """
    summary, rows = details.get("summary", {}), int(details.get("trainRows", 0) or 0)
    longest = min(int(summary.get("longest", 0)) or max_length, max_length)
    if not rows or not summary.get("tokens"):
        return RowLengths(longest, longest, 0)
    mean = min(summary["tokens"] / rows, longest)
    try:
        buckets = [(min(int(bucket["upTo"]), longest), int(bucket["rows"])) for bucket in report["tokens"]["histogram"]]
    except (KeyError, TypeError, ValueError):
        return RowLengths(longest, mean)
    counted = sum(count for _, count in buckets)
    # Every row counted as long as its bucket allows: never less than they are spread.
    spread = (sum(count * (length - mean) ** 2 for length, count in buckets) / counted) ** 0.5 if counted else None
    return RowLengths(longest, mean, spread)


def _on_cpu(job: Job, config: JobConfig) -> FastPlan:
    """Everything kept, as nothing is gained by computing it again."""
    micro = microbatch.initial(config.training.micro_batch_size, config.rows_per_gpu, cpu_only=True)
    return FastPlan(
        micro_batch=micro,
        accumulation=config.rows_per_gpu // micro,
        keep=[KEEP_ALL] * job.shape.layers,
        row_tokens=job.rows.longest,
        optimizer=job.numbers.optimizer if job.numbers else config.training.extra_args.get("optim", fast_sizing.FULL.optimizer),
        evaluation_batch=micro,
        loss_tokens=fast_sizing.loss_tokens(job.rows.tokens(micro)),
        predicted_bytes=0,
        budget_bytes=0,
    )


def _numbers(earlier: Mapping[str, Any]) -> Numbers | None:
    """Types of a checkpoint of the fast path; None for one that was made without."""
    found = earlier.get("fastPath")
    return Numbers(found["loraDtype"], found["optimizer"], found.get("masters", "none")) if found else None


def _correction(earlier: Mapping[str, Any] | None, rows: RowLengths) -> float:
    """Measured over predicted peak of the earlier pod. Of uneven rows its first step need not have met the longest micro-batch: that corrects upwards only."""
    found = (earlier or {}).get("fastPath", {})
    measured, predicted = found.get("measuredBytes", 0), found.get("predictedBytes", 0)
    factor = _within(found.get("correction", 1.0) * measured / predicted) if measured and predicted else 1.0
    return factor if rows.even else max(1.0, factor)


def _within(factor: float) -> float:
    least, most = _CORRECTION
    return max(least, min(most, factor))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
