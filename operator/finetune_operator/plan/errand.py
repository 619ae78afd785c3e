"""Where a Kubernetes Job stands that an endpoint makes for one of its versions: the merge of its adapter, or an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from finetune_operator import clock
from finetune_operator.observe import JobView, PodView
from finetune_runtime.contract.result import StepResult

from .faults import Fault, ending, not_created, result, waiting
from .step import RESULT_PATIENCE

MISSED_AFTER = 90.0  # seconds without a pod
# The Job's controller waits so long before it makes the next pod after a failure, and twice as long after each further one.
BACKOFF = 10.0


class Stand(Enum):
    """Where an errand stands."""

    START = auto()  # the Job has to be made
    WAIT = auto()  # it is under way
    AGAIN = auto()  # its result is lost: the Job has to go, then it is made again
    DONE = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Errand:
    """Where an errand stands, and what is known about it."""

    stand: Stand
    message: str = ""  # what is waited for, or how it failed; empty where a pod is at work
    pod: str = ""  # the one at work
    fault: Fault | None = None  # what holds it up
    result: StepResult | None = None
    look_in: float | None = None  # seconds until more is known without an event
    since: float = 0.0  # seconds; since when it is held up


def look(job: JobView | None, pods: tuple[PodView, ...], step: str, now: float, *, what: str, counts: Callable[[StepResult], object]) -> Errand:
    """Where the Job of a `step` stands, `what` in words. `counts`: whether a result says what was asked for."""
    # One at a time, and of the same kind: older pods have to end first.
    older = next((p for p in pods if p.step == step and p.alive and (job is None or job.deleting or p.parent != job.name)), None)
    if older or (job and job.deleting):
        return Errand(Stand.WAIT, ending(older) if older else f"an older {what} is ending")
    if job is None:
        return Errand(Stand.START)
    # A Job of the same name may have been made and deleted before.
    mine = [p for p in pods if p.parent == job.name and (not p.gone or p.controller == job.uid)]
    for ended in (p.ended for p in mine):
        found = result(ended)
        if ended and ended.exit_code == 0 and found and counts(found):
            return Errand(Stand.DONE, result=found)
    if job.failed:
        return Errand(Stand.FAILED, _last_words(mine) or job.failure)
    if job.complete:
        left = clock.seconds(job.finished_at) + RESULT_PATIENCE - now if job.finished_at else 0.0
        return Errand(Stand.WAIT if left > 0 else Stand.AGAIN, f"waiting for the result of the {what}", look_in=left if left > 0 else None)
    return _pod(job, mine, now, what)


def _pod(job: JobView, mine: list[PodView], now: float, what: str) -> Errand:
    pod = max((p for p in mine if p.alive), key=lambda p: (p.created_at, p.name), default=None)
    if pod is None and job.suspended:
        return Errand(Stand.WAIT, f"Kubernetes Job {job.name} is suspended: unless Kueue manages it, set its spec.suspend to false")
    if pod is None:
        began = clock.seconds(job.started_at) if job.started_at else 0.0
        since = max(began, *(_end(p) for p in mine), 0.0)
        failed = sum(1 for p in mine if p.ended and p.ended.exit_code)
        left = since + max(MISSED_AFTER, BACKOFF * 2.0**failed) - now
        fault = not_created(job.name) if since and left <= 0 else None
        words = f"waiting for the next pod of the {what}; the last one: {last}" if (last := _last_words(mine)) else f"waiting for the pod of the {what}"
        return Errand(Stand.WAIT, words, fault=fault, look_in=left if since and not fault else None, since=since)
    if fault := waiting(pod):
        return Errand(Stand.WAIT, fault=Fault(fault.reason, f"{what} pod {pod.name}: {fault.message}"), since=clock.seconds(pod.created_at))
    return Errand(Stand.WAIT, ending(pod) if pod.deleting else "", pod.name)


def _end(pod: PodView) -> float:
    """When a pod ended, as far as anybody knows."""
    return max(pod.gone_at, clock.seconds(pod.ended.finished_at) if pod.ended and pod.ended.finished_at else 0.0)


def _last_words(pods: list[PodView]) -> str:
    """What the pod said that ended last."""
    told = [(_end(p), found.message) for p in pods if (found := result(p.ended))]
    return max(told, default=(0.0, ""))[1]
