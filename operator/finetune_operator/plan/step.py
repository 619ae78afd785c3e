"""Where one step (prepare or train) stands, read from its recorded attempts, its Kubernetes Jobs and their pods."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from finetune_operator import clock
from finetune_operator.api.finetunejob import Retries
from finetune_operator.api.jobstatus import Attempt
from finetune_operator.names import Step
from finetune_operator.observe import Ended, JobView, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.result import Exit, StepResult

from .faults import LOST_NODE, Failure, Fault, ending, failure, not_created, of_pod, result, waiting

MAX_BACKOFF = 300.0  # seconds
# A Job can be seen as complete before its last pod is: wait this long before its result counts as lost.
RESULT_PATIENCE = 15.0
# A Job that is started has its pod within a second, and a pod on a node runs as soon as its image is there: what takes longer has a cause to be looked for.
POD_PATIENCE, START_PATIENCE = 30.0, 180.0
SOON = 0.2  # seconds to a look that only has to come after the status is written


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
    replaced: bool = False  # the pod of the attempt was taken away since the last record, and another one stands in
    unseen: bool = False  # nobody saw how the recorded pod went, nor what it said at its end
    pod: PodView | None = None  # newest pod of the attempt
    by_absence: bool = False  # concluded from what was not seen
    result: StepResult | None = None
    retry_in: float | None = None  # seconds


def backoff(retries: Retries, failures: int) -> float:
    """Wait before the next attempt in seconds: doubles from backoffSeconds with each failure, at most 5 minutes."""
    return min(MAX_BACKOFF, retries.backoff_seconds * 2.0 ** min(16, max(0, failures - 1)))


def _newest(pods: Iterable[PodView], known: str | None) -> PodView | None:
    """The newest pod. Of those that were created in the same second the `known` one, or an old one would stand in for it."""
    return max(pods, key=lambda p: (p.created_at, not p.gone, p.ended is None, p.name == known, p.name), default=None)


def _after_failure(record: Attempt, failures: int, retries: Retries, now: float, *, waited: int) -> StepState:
    """The newest attempt has failed and another one is allowed: when is it due?"""
    due = clock.seconds(record.ended_at or clock.text(now)) + backoff(retries, max(1, waited))
    what = record.message or record.reason or ""
    if now >= due:
        return StepState(Stand.START, record.number + 1, Reason.RETRYING, what, record, failures, by_absence=True)
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
    state = _after_failure(record, failures, retries, now, waited=record.number)
    if state.stand is not Stand.START:
        return state
    # On record first: a Job that is made before would hide this failure from an operator that is started anew in between.
    return replace(state, stand=Stand.WAIT, number=record.number, reason=failed.reason, retry_in=SOON)


def _interruption(pod: PodView, preempted: str) -> str:
    """Why a pod was taken away before it was done; empty when it was not."""
    if pod.disruption:
        return pod.disruption
    if preempted and (pod.deleting or pod.gone):
        return preempted
    if pod.ended and pod.ended.exit_code == Exit.INTERRUPTED:
        return Reason.INTERRUPTED
    return ""


def _is_past(pod: PodView, record: Attempt, *, over: bool) -> bool:
    """Whether another pod than the recorded one is no successor: caches may be older than the live look that the record was made by.

    One that came later and is gone was a successor, but stands in for nobody while the next one may still come; `over`: none will.
    """
    if record.pod is None or pod.name == record.pod:
        return False
    return pod.created_at < (record.pod_created_at or "") or (pod.gone and not over)


def _at_work(pod: PodView) -> str:
    """Words that hold until the result is there, so that they are written once."""
    return f"in pod {pod.name} on node {pod.node}"


def _held_up(base: StepState, record: Attempt, fault: Fault, since: float, timeout: int | None, now: float) -> StepState:
    """The newest attempt waits for something, for as long as spec.schedulingTimeoutSeconds says."""
    left = None if timeout is None else since + timeout - now
    if left is not None and left <= 0:
        message = f"{fault.message} (waited {timeout} s, as spec.schedulingTimeoutSeconds says)"
        record = record.model_copy(update={"ended_at": clock.text(now), "reason": fault.reason, "message": message[:1000]})
        # What is missing may have come: caches may be behind.
        return replace(base, stand=Stand.FAILED, reason=fault.reason, message=message, record=record, by_absence=True)
    return replace(base, reason=fault.reason, message=fault.message, retry_in=left)


def _without_pod(record: Attempt, job: JobView, pod: PodView | None, base: StepState, timeout: int | None, now: float) -> StepState:
    """No pod is there, and the Job's controller has to make one."""
    begun = clock.seconds(job.started_at) if job.started_at and not job.suspended else None
    if begun is not None and (pod or record.pod):  # there was one; when it went is known of those that were seen to end
        begun = max(begun, clock.seconds(pod.ended.finished_at)) if pod and pod.ended and pod.ended.finished_at else None
    if begun is None or now < begun + POD_PATIENCE:
        left = None if begun is None else begun + POD_PATIENCE - now
        return replace(base, reason=Reason.PENDING, message="waiting for the pod to be created", retry_in=left)
    return replace(_held_up(base, record, not_created(job.name), begun, timeout, now), by_absence=True)


def _ending(pod: PodView, ended: Ended, base: StepState, now: float) -> StepState:
    """Its container has ended, and its Kubernetes Job takes note in a moment, unless another one in the pod goes on."""
    left = clock.seconds(ended.finished_at) + POD_PATIENCE - now if ended.finished_at and pod.phase == "Running" else None
    if left is None or left > 0:
        return replace(base, reason=Reason.RUNNING, message=_at_work(pod), retry_in=left)
    message = (
        f"the step has ended in pod {pod.name}, but another container keeps the pod running: keep containers that are injected out of this namespace's Jobs "
        "(Istio: label sidecar.istio.io/inject=false, or native sidecars), or end that one"
    )
    return replace(base, reason=Reason.SIDECAR_RUNNING, message=message)


def _running(record: Attempt, job: JobView, pod: PodView | None, base: StepState, timeout: int | None, now: float) -> StepState:
    """The newest attempt is under way."""
    if pod is None or pod.gone:
        return _without_pod(record, job, pod, base, timeout, now)
    if pod.deleting or (pod.ended and pod.ended.exit_code == Exit.INTERRUPTED):
        why = f" ({record.interrupted_by})" if record.interrupted_by else ""
        told = f"pod {pod.name} on node {pod.node or '(none)'} was interrupted{why} and is ending; a new pod goes on from the newest checkpoint. {LOST_NODE}"
        return replace(base, reason=Reason.STOPPING, message=told)
    if pod.ended and not pod.waiting_reason:
        return _ending(pod, pod.ended, base, now)
    created = clock.seconds(pod.created_at)
    if fault := waiting(pod):
        return _held_up(base, record, fault, created, timeout, now)
    if pod.running:
        return replace(base, reason=Reason.RUNNING, message=_at_work(pod))
    if now < created + START_PATIENCE:
        return replace(base, reason=Reason.STARTING, message=f"pod {pod.name} is starting", retry_in=created + START_PATIENCE - now)
    message = (
        f"pod {pod.name} has been starting for minutes: its image may be large, or a volume cannot be mounted; its events say (kubectl describe pod {pod.name})"
    )
    return _held_up(base, record, Fault(Reason.STARTING, message), created, timeout, now)


@dataclass(frozen=True, slots=True)
class StepView:
    """What decides where a step stands. Nothing in it was seen before, except what is recorded."""

    step: Step
    attempts: list[Attempt]  # recorded ones, of all steps
    failures: int  # recorded ones of this step that counted
    jobs: tuple[JobView, ...]
    pods: tuple[PodView, ...]
    retries: Retries = field(default_factory=Retries)
    scheduling_timeout: int | None = None  # seconds
    preempted: str = ""  # why Kueue took the quota back
    noted: bool = False  # why the pod is taken away stands in the record; the quota may be there again, and Kueue no longer says


def _missing(view: StepView, recorded: Attempt | None, now: float) -> StepState:
    """The newest attempt has no Kubernetes Job."""
    if recorded and recorded.ended_at:
        state = _after_failure(recorded, view.failures, view.retries, now, waited=recorded.number)
    elif recorded:
        # Somebody deleted the Job, or our view of it is old. Making the same attempt again is right in both cases:
        # it goes on from the newest checkpoint, and a Job that does exist is left as it is.
        message = "the Kubernetes Job is gone; the attempt goes on in a new one"
        state = StepState(Stand.START, recorded.number, Reason.JOB_DELETED, message, recorded, view.failures, by_absence=True)
    else:
        state = StepState(Stand.START, 1, Reason.PENDING, "", by_absence=True)
    busy = next((p for p in view.pods if p.alive), None)
    if state.stand is Stand.START and busy:
        message = ending(busy, ": two pods must never work on one job")
        return replace(state, stand=Stand.WAIT, number=recorded.number if recorded else 1, reason=Reason.TERMINATING, message=message)
    return state


def _completed(job: JobView, mine: list[PodView], base: StepState, record: Attempt, view: StepView, now: float) -> StepState:
    """The Kubernetes Job is complete: its pod's result says what came of it."""
    done = next((p for p in mine if p.ended and p.ended.exit_code == 0 and result(p.ended)), None)
    if done and done.ended:
        found = result(done.ended)
        ended = record.model_copy(update={"ended_at": done.ended.finished_at or clock.text(now), "reason": Reason.COMPLETED, "exit_code": 0})
        return replace(base, stand=Stand.DONE, reason=Reason.COMPLETED, message=found.message if found else "", record=ended, result=found)
    if record.ended_at and record.reason == Reason.RESULT_LOST:
        return _after_failure(record, view.failures, view.retries, now, waited=record.number)
    since = clock.seconds(job.finished_at) if job.finished_at else now
    if now < since + RESULT_PATIENCE:
        return replace(base, reason=Reason.RUNNING, message="waiting for the result", retry_in=RESULT_PATIENCE)
    # Nobody's failure, and a try that finds everything done takes seconds.
    lost = Failure(
        Reason.RESULT_LOST, "the pod was deleted before its result was read; the next attempt finds what it committed", None, terminal=False, counts=False
    )
    return replace(_failed(lost, record, view.failures, view.retries, now, job.finished_at), by_absence=True)


def step_state(view: StepView, now: float) -> StepState:
    """Where a step stands at `now` (seconds)."""
    recorded = max((a for a in view.attempts if a.step == view.step), key=lambda a: a.number, default=None)
    job = max((j for j in view.jobs if j.step == view.step), key=lambda j: j.attempt, default=None)
    if job is None or (recorded and job.attempt < recorded.number):
        return _missing(view, recorded, now)

    mine = [p for p in view.pods if p.parent == job.name]
    record = recorded if recorded and recorded.number == job.attempt else Attempt(step=view.step, number=job.attempt)
    pod = _newest((p for p in mine if not _is_past(p, record, over=job.complete or job.failed)), record.pod)
    before = next((p for p in mine if p.name == record.pod), None)
    # A pod that went while nobody looked leaves only what Kueue says.
    why = _interruption(before, view.preempted) if before else view.preempted
    if record.pod and why and not (view.noted and record.interrupted_by and why == Reason.INTERRUPTED):
        record = record.model_copy(update={"interrupted_by": why})
    # A pod that ended by itself was not taken away, whoever removed it afterwards.
    by_itself = before is not None and before.ended is not None and not why
    replaced = bool(pod and record.pod and pod.name != record.pod and not by_itself)
    # A pod of before a suspension is no news: it was taken out of the record because nobody interrupted it.
    if pod and (record.pod or pod.alive or job.complete or job.failed):
        record = record.model_copy(
            update={"pod": pod.name, "pod_created_at": pod.created_at, "node": pod.node or record.node, "started_at": record.started_at or pod.created_at}
        )
    base = StepState(Stand.WAIT, job.attempt, Reason.RUNNING, "", record, view.failures, replaced, before is None, pod)
    if job.complete:
        return _completed(job, mine, base, record, view, now)
    if job.failed:
        if record.ended_at:
            return _after_failure(record, view.failures, view.retries, now, waited=record.number)
        last = pod.ended if pod else None
        state = _failed((of_pod(pod) if pod else None) or failure(last, job.failure), record, view.failures, view.retries, now, job.finished_at)
        return replace(state, result=result(last) if last else None, by_absence=last is None)
    return _running(record, job, pod, base, view.scheduling_timeout, now)
