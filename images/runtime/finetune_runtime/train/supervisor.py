"""The supervisor of the GPU pod. One thread decides, fed by one queue: signals, what the callback reports, how the process ended."""

import logging
import os
import queue
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar

from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import SCRATCH_DIR, AdapterRef, JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, StepResult, TrainSummary
from finetune_runtime.s3.store import Store

from . import diagnosis, leftover
from .child import Child, Ended
from .events import Event, Kind
from .inputs import committed_adapter, gather
from .progress import Reporter
from .run import Run

log = logging.getLogger(__name__)

STEP = "train"
# An interrupted pod has the operator's grace of 600 s in all; what storage did not take by then is better kept than cut off.
INTERRUPTED_PATIENCE_SECONDS = 540.0
CRASH_PATIENCE_SECONDS = 60.0
SIGNAL_SECONDS = 0.5  # a signal is noticed this soon at the latest

T = TypeVar("T")


class TrainingFailedError(StepError):
    """A StepError that also says how far the training came."""

    def __init__(self, error: StepError, train: TrainSummary) -> None:
        super().__init__(error.code, error.reason, error.message)
        self.train = train


class _Interrupted(Exception):  # noqa: N818  an outcome, not an error
    """SIGTERM came while there was nothing to save."""


@dataclass(frozen=True)
class Terminate:
    """SIGTERM was received."""


@dataclass(frozen=True)
class Ready:
    """Background work is over."""


def run(config: JobConfig) -> StepResult:
    """Trains to the end (Completed) or to the first SIGTERM (Interrupted). Raises TrainingFailedError."""
    return Supervisor(config, Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR))).run()


class Supervisor:
    """Takes over SIGTERM of the process. All state is touched by the calling thread only."""

    def __init__(self, config: JobConfig, scratch: Path) -> None:
        self._config, self._scratch = config, scratch
        self._inbox: queue.SimpleQueue[Event | Ended | Terminate | Ready] = queue.SimpleQueue()
        self._terminating = False
        self._run: Run | None = None
        self._reporter = Reporter(config.reporting)
        signal.signal(signal.SIGTERM, lambda *_: self._inbox.put(Terminate()))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked since the process began

    def run(self) -> StepResult:
        """The step's result. Raises TrainingFailedError."""
        try:
            store = Store(self._config.storage)
            if adapter := self._unless_terminated(lambda: committed_adapter(self._config, store)):
                return _completed_before(*adapter)
            self._unless_terminated(lambda: leftover.commit(self._config, store, self._scratch / "staged", self._scratch / "metrics.jsonl"))
            for name in ("output", "staged", "kept", "best", "resume", "adapter"):
                shutil.rmtree(self._scratch / name, ignore_errors=True)  # of a container that ran here before: only storage is trusted
            start = self._unless_terminated(lambda: gather(self._config, store, self._scratch))
            self._run = Run(self._config, store, self._scratch, start, self._reporter)
            return self._train(self._run)
        except _Interrupted:
            return self._interrupted()
        except StepError as error:
            raise TrainingFailedError(error, self._summary()) from error
        finally:
            self._reporter.close()

    def _train(self, run: Run) -> StepResult:
        try:
            finished = self._finish(run)
        except StepError as error:
            run.give_up(CRASH_PATIENCE_SECONDS, error.message)  # whatever the cause: a checkpoint may wait for its upload
            raise
        if not finished:
            run.drain(min(INTERRUPTED_PATIENCE_SECONDS, self._config.storage_timeout_seconds))
            return self._interrupted()
        # From here on SIGTERM changes nothing: what is left takes seconds, and it is what the run was for.
        run.drain(self._config.storage_timeout_seconds)
        run.commit_adapter()
        return StepResult(step=STEP, reason=Reason.COMPLETED, message=_progress(run.summary), train=run.summary)

    def _finish(self, run: Run) -> bool:
        """Starts one process after another until the training is over; False: SIGTERM ended it before. Raises StepError where no further one can help."""
        while not run.is_finished():
            child = self._start_child(run)
            return_code = self._follow(child, run)
            if run.is_finished():
                break
            if run.diverged:
                raise StepError(Exit.CRASH, Reason.TRAINING_CRASHED, run.diverged)
            if self._terminating:
                return False
            if run.declined:
                continue
            # SIGKILL comes from outside, whatever was said before.
            killed = return_code == -signal.SIGKILL
            if not killed and diagnosis.out_of_memory(child.tail):
                run.shrink()
            elif killed or not run.fall_back(diagnosis.last_error(child.tail)):
                raise StepError(Exit.CRASH, Reason.TRAINING_CRASHED, diagnosis.crash(return_code, child.tail))
        return True

    def _start_child(self, run: Run) -> Child:
        run.loading()
        words = [sys.executable, "-m", "swift.cli.sft", *run.command()]
        log.info("starting %s", " ".join(words))
        return Child(words, lambda events_fd: run.environments(os.environ, events_fd), self._scratch, self._inbox.put)

    def _follow(self, child: Child, run: Run) -> int:
        """Works off the queue until the process has ended; returns its return code."""
        while True:
            match self._next():
                case Terminate() if not self._terminating:
                    self._terminating = True
                    log.info("SIGTERM: saving at the end of the step")
                    child.signal(signal.SIGTERM)
                case Ended(return_code):
                    return return_code
                case Event() as event:
                    try:
                        run.on_event(event)
                    except StepError:
                        child.kill()
                        raise
                    # After a finished or interrupted training ms-swift only draws plots, which takes seconds that an eviction may not leave.
                    over = event.kind is Kind.END and (run.is_finished() or self._terminating)
                    if run.diverged or run.declined or over:
                        child.kill()
                case _:
                    pass  # a second SIGTERM changes nothing

    def _unless_terminated(self, work: Callable[[], T]) -> T:
        """Result of `work`, done in a thread so that SIGTERM does not have to wait for a download. Raises _Interrupted, or what `work` raises."""
        results: list[T] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001  raised again below, in the thread that waits
                errors.append(error)
            self._inbox.put(Ready())

        Thread(target=target, daemon=True).start()
        if isinstance(self._next(), Terminate):
            raise _Interrupted
        if errors:
            raise errors[0]
        return results[0]

    def _next(self) -> Event | Ended | Terminate | Ready:
        """Waits for whatever comes next.

        Python runs signal handlers between two instructions of the main thread. A signal that the kernel gives to another thread, or
        that comes just before the wait begins, does not end a wait without a time limit, and the pod would not notice its eviction.
        """
        while True:
            try:
                return self._inbox.get(timeout=SIGNAL_SECONDS)
            except queue.Empty:
                continue

    def _interrupted(self) -> StepResult:
        summary = self._summary()
        return StepResult(step=STEP, reason=Reason.INTERRUPTED, message=f"Interrupted. {_progress(summary)}", train=summary)

    def _summary(self) -> TrainSummary:
        return self._run.summary if self._run else TrainSummary()


def _completed_before(manifest: Manifest, adapter: AdapterRef) -> StepResult:
    log.info("%s is complete already", adapter.uri)
    summary = TrainSummary(
        step=manifest.details.get("lastStep", manifest.step),
        adapter_step=manifest.step,
        stopped_early=manifest.details.get("stoppedEarly", False),
        versions=manifest.details.get("versions", {}),
        command=shlex.join(manifest.details.get("command", [])),
        total_steps=manifest.total_steps,
        committed_step=manifest.step,
        loss=manifest.details.get("trainLoss"),
        eval_loss=manifest.eval_loss,
        micro_batch=manifest.details.get("microBatch", 0),
        fast_path=manifest.details.get("fastPath"),
        adapter=adapter,
    )
    return StepResult(step=STEP, reason=Reason.COMPLETED, message=_progress(summary), train=summary)


def _progress(summary: TrainSummary) -> str:
    loss = "" if summary.loss is None else f", loss {summary.loss:.4g}"
    early = ", stopped early because the evaluation loss no longer fell" if summary.stopped_early else ""
    return f"Step {summary.step} of {summary.total_steps}{loss}{early}; step {summary.committed_step} is safe in storage."
