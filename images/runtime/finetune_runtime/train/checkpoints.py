"""Staged checkpoints on their way to storage: a background thread uploads the newest and prunes old ones."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import CHECKPOINTS_DIR, Manifest, checkpoint_step
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.s3.store import Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0


@dataclass(frozen=True)
class Staged:
    """A whole local checkpoint; the manifest says all but its files."""

    path: Path
    manifest: Manifest


def best(complete: Mapping[int, float | None]) -> int | None:
    """The step with the lowest evaluation loss, the earlier of equal ones. `complete`: evaluation losses by step, None where there was no evaluation."""
    measured = [(loss, step) for step, loss in complete.items() if loss is not None and math.isfinite(loss)]
    return min(measured)[1] if measured else None


def stale(present: Collection[int], complete: Mapping[int, float | None], keep: int) -> list[int]:
    """Steps whose directories may go: all below the newest complete one, but the `keep` newest complete ones and the best one.

    Incomplete ones are remains of killed uploads; above the newest complete one, one may be being written.
    """
    newest = sorted(complete, reverse=True)[: max(keep, 1)]
    kept = {*newest, best(complete)}
    return sorted(step for step in present if newest and step < newest[0] and step not in kept)


def prune(store: Store, prefix: str, keep: int) -> None:
    """Deletes stale checkpoints from storage."""
    root = f"{prefix}/{CHECKPOINTS_DIR}/"
    names = {item.uri.removeprefix(root).partition("/")[0] for item in store.list(root)}
    present = {step for name in names if (step := checkpoint_step(name)) is not None}
    complete = {step: manifest.eval_loss for step, _, manifest in artefacts.checkpoints(store, prefix)}
    for step in stale(present, complete, keep):
        artefacts.delete(store, f"{root}checkpoint-{step}")
        log.info("checkpoint %d pruned", step)


class Uploader:
    """Commits staged checkpoints one at a time. Storage that is down is tried again; a newer checkpoint takes the place of a waiting one."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        keep: int,
        before: Callable[[], None],
        committed: Callable[[int], None] = lambda _: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`before` uploads the report. It is called ahead of each commit, so that the report is never older than the newest checkpoint.

        `committed` hears the step of each committed checkpoint. Both are called by the uploader's thread.
        """
        self._store, self._prefix, self._keep, self._before, self._committed = store, prefix, keep, before, committed
        self._retry_seconds = retry_seconds
        self._condition = threading.Condition()
        self._waiting: Staged | None = None
        self._report_due = False
        self._busy = self._closed = False
        self._error: Exception | None = None
        self.committed_step = 0
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, staged: Staged) -> None:
        """Hands a checkpoint over; its local files are removed once they are committed or outdated."""
        with self._condition:
            if self._waiting:
                log.warning("storage is slower than the training: checkpoint %d is passed over", self._waiting.manifest.step)
                shutil.rmtree(self._waiting.path, ignore_errors=True)
            self._waiting = staged
            self._condition.notify_all()

    def report(self) -> None:
        """Has the report uploaded soon. Best effort: the next one, or the next checkpoint, carries what was lost."""
        with self._condition:
            self._report_due = True
            self._condition.notify_all()

    @property
    def waiting(self) -> Staged | None:
        """The checkpoint that could not be committed."""
        with self._condition:
            return self._waiting

    def drain(self, patience: float) -> None:
        """Waits until all is committed. Raises the last StepError when that takes more than `patience` seconds; nothing is tried after that."""
        end = time.monotonic() + patience
        with self._condition:
            while self._waiting or self._busy:
                if time.monotonic() >= end and self._error and not self._busy:
                    self._closed = True
                    raise self._error
                self._condition.wait(1)

    def _run(self) -> None:
        while True:
            staged = self._next()
            if staged is None:
                self._upload_report()
                continue
            error = self._commit(staged)
            with self._condition:
                self._error, self._busy = error, False
                if error and not self._waiting:
                    self._waiting = staged
                else:
                    shutil.rmtree(staged.path, ignore_errors=True)
                self._condition.notify_all()
                if error:
                    self._condition.wait(self._retry_seconds)  # a newer checkpoint ends the wait

    def _next(self) -> Staged | None:
        """The checkpoint to commit; None: there is none, and the report is due."""
        with self._condition:
            while self._closed or not (self._waiting or self._report_due):
                self._condition.wait()
            staged, self._waiting, self._busy, self._report_due = self._waiting, None, self._waiting is not None, False
            return staged

    def _upload_report(self) -> None:
        try:
            self._before()
        except StepError as error:
            log.info("the report is not uploaded this time: %s", error.message)
        except Exception:
            log.exception("the report cannot be uploaded")

    def _commit(self, staged: Staged) -> Exception | None:
        step, started = staged.manifest.step, time.monotonic()
        try:
            self._before()
            # What is there under this step is what a killed attempt left or what turned out to be damaged.
            artefacts.commit(self._store, staged.path, f"{self._prefix}/{CHECKPOINTS_DIR}/checkpoint-{step}", staged.manifest, replace=True)
            self.committed_step = step
            self._committed(step)
            log.info("checkpoint %d committed in %.1f s", step, time.monotonic() - started)
            prune(self._store, self._prefix, self._keep)
        except StepError as error:
            if self.committed_step == step:
                log.warning("old checkpoints could not be pruned: %s", error.message)
            else:
                log.warning("checkpoint %d is not committed yet: %s", step, error.message)
                return error
        except Exception as error:
            log.exception("checkpoint %d cannot be uploaded", step)
            return StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"checkpoint {step} cannot be uploaded: {error}")
        return None
