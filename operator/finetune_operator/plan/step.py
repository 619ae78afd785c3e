"""Where one step (prepare or train) stands, read from its recorded attempts, its Kubernetes Jobs and their pods."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

from finetune_operator import clock
from finetune_operator.api.finetunejob import Attempt, Retries
from finetune_operator.names import Step
from finetune_operator.observe import JobView, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.result import Exit, StepResult
from finetune_runtime.contract.result import Reason as StepReason

from .faults import Failure, failure, result, waiting

MAX_BACKOFF = 300.0  # seconds
# A Job can be seen as complete before its last pod is: wait this long before its result counts as lost.
RESULT_PATIENCE = 15.0


class Stand(Enum):
    """Where a step stands."""

    START = auto()  # an attempt has to be made
    WAIT = auto()  # an attempt is under way, or the next one is not due yet
    DONE = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a step stands and what to record about it."""

    stand: Stand
    number: int  # attempt that is meant
    reason: str
    message: str
    record: Attempt | None = None  # newest attempt, to be written to the status
    failures: int = 0
    interruptions: int = 0  # found now, in addition to those recorded
    result: StepResult | None = None
    retry_in: float | None = None  # seconds


def backoff(retries: Retries, failures: int) -> float:
    """Wait before the next attempt in seconds: doubles from backoffSeconds with each failure, at most 5 minutes."""
    return min(MAX_BACKOFF, retries.backoff_seconds * 2.0 ** min(16, max(0, failures - 1)))


def _newest(pods: Iterable[PodView]) -> PodView | None:
    return max(pods, key=lambda p: (p.created_at, p.ended is None, p.name), default=None)


def _after_failure(record: Attempt, failures: int, retries: Retries, now: float, *, waited: int) -> StepState:
    """The newest attempt has failed and another one is allowed: when is it due?"""
    due = clock.seconds(record.ended_at or clock.text(now)) + backoff(retries, max(1, waited))
    what = record.message or record.reason or ""
    if now >= due:
        return StepState(Stand.START, record.number + 1, Reason.RETRYING, what, record, failures)
    return StepState(Stand.WAIT, record.number, record.reason or Reason.RETRYING, what, record, failures, retry_in=due - now)


def _failed(failed: Failure, record: Attempt, failures: int, retries: Retries, now: float, ended_at: str) -> StepState:
    """The newest attempt has just been seen to fail."""
    record = record.model_copy(
        update={"ended_at": ended_at or clock.text(now), "reason": failed.reason, "message": failed.message[:1000], "exit_code": failed.exit_code}
    )
    failures += failed.counts
    if failed.terminal:
        return StepState(Stand.FAILED, record.number, failed.reason, failed.message, record, failures)
    if failures > retries.limit:
        tried = f" (attempt {record.number}; spec.retries.limit is {retries.limit})"
        return StepState(Stand.FAILED, record.number, failed.reason, failed.message + tried, record, failures)
    # Faults that do not count (unreachable storage) still wait longer each time: by the number of the attempt.
    return _after_failure(record, failures, retries, now, waited=record.number)


def _running(record: Attempt, pod: PodView | None, failures: int, interruptions: int) -> StepState:
    """The newest attempt is under way."""
    if pod is None:
        return StepState(Stand.WAIT, record.number, Reason.PENDING, "waiting for the pod to be created", record, failures, interruptions)
    if pod.deleting or (pod.ended and pod.ended.exit_code == Exit.INTERRUPTED):
        message = f"pod {pod.name} was interrupted; a new pod goes on from the newest checkpoint"
        return StepState(Stand.WAIT, record.number, StepReason.INTERRUPTED, message, record, failures, interruptions)
    if pod.ended:
        message = f"pod {pod.name} has ended; waiting for its Kubernetes Job to take note"
        return StepState(Stand.WAIT, record.number, Reason.RUNNING, message, record, failures, interruptions)
    if fault := waiting(pod):
        return StepState(Stand.WAIT, record.number, fault.reason, fault.message, record, failures, interruptions)
    if pod.running:
        return StepState(Stand.WAIT, record.number, Reason.RUNNING, f"pod {pod.name} runs on node {pod.node}", record, failures, interruptions)
    return StepState(Stand.WAIT, record.number, Reason.STARTING, f"pod {pod.name} is starting", record, failures, interruptions)


def step_state(step: Step, attempts: list[Attempt], failures: int, jobs: Iterable[JobView], pods: Iterable[PodView], retries: Retries, now: float) -> StepState:
    """Where `step` stands at `now` (seconds).

    `attempts` are the recorded ones of all steps, `failures` those of this step that counted, `jobs` and `pods` the
    ones of this FineTuneJob. Nothing here depends on what was seen before except what is recorded.
    """
    recorded = max((a for a in attempts if a.step == step), key=lambda a: a.number, default=None)
    job = max((j for j in jobs if j.step == step), key=lambda j: j.attempt, default=None)
    if job is None or (recorded and job.attempt < recorded.number):
        if recorded is None:
            return StepState(Stand.START, 1, Reason.PENDING, "")
        if recorded.ended_at:
            return _after_failure(recorded, failures, retries, now, waited=recorded.number)
        # Somebody deleted the Job, or our view of it is old. Making the same attempt again is right in both cases:
        # it goes on from the newest checkpoint, and a Job that does exist is left as it is.
        return StepState(Stand.START, recorded.number, Reason.JOB_DELETED, "the Kubernetes Job is gone; the attempt goes on in a new one", recorded, failures)

    mine = [p for p in pods if p.parent == job.name]
    pod = _newest(mine)
    record = recorded if recorded and recorded.number == job.attempt else Attempt(step=step, number=job.attempt)
    interruptions = int(bool(pod and record.pod and pod.name != record.pod))
    if pod:
        record = record.model_copy(update={"pod": pod.name, "node": pod.node or record.node, "started_at": record.started_at or pod.created_at})
    if job.complete:
        done = next((p for p in mine if p.ended and p.ended.exit_code == 0 and result(p.ended)), None)
        if done and done.ended:
            found = result(done.ended)
            ended = record.model_copy(update={"ended_at": done.ended.finished_at or clock.text(now), "reason": Reason.COMPLETED, "exit_code": 0})
            return StepState(Stand.DONE, job.attempt, Reason.COMPLETED, found.message if found else "", ended, failures, interruptions, found)
        since = clock.seconds(job.finished_at) if job.finished_at else now
        if now < since + RESULT_PATIENCE:
            return StepState(Stand.WAIT, job.attempt, Reason.RUNNING, "waiting for the result", record, failures, interruptions, retry_in=RESULT_PATIENCE)
        lost = Failure(
            Reason.RESULT_LOST, "the pod was deleted before its result was read; the next attempt finds what it committed", None, terminal=False, counts=True
        )
        return _failed(lost, record, failures, retries, now, job.finished_at)
    if job.failed:
        if record.ended_at:
            return _after_failure(record, failures, retries, now, waited=record.number)
        last = pod.ended if pod else None
        state = _failed(failure(last, job.failure), record, failures, retries, now, job.finished_at)
        return replace(state, result=result(last) if last else None)
    return _running(record, pod, failures, interruptions)
