"""What keeps a job from running: its spec.suspend, or a queue without quota. Also the clock of its deadline.

Without a queue the Kubernetes Job's spec.suspend is ours. With one it is Kueue's alone: a job is paused by making its
Workload inactive, which gives the quota back, and an annotation tells our pauses from those of an administrator.
"""

from dataclasses import dataclass

from finetune_operator import clock, names
from finetune_operator.api.meta import ConditionType
from finetune_operator.observe import JobView, PodView, WorkloadView
from finetune_operator.reasons import Reason

from .draft import Draft
from .faults import LOST_NODE
from .types import Body, Ref

KUEUE = "kueue.x-k8s.io/v1beta2"


@dataclass(frozen=True, slots=True)
class Hold:
    """What holds a job."""

    suspended: bool = False  # spec.suspend: nothing may be started
    at_rest: bool = False  # nothing runs: time does not count
    since: str = ""  # when it came to rest


def _busy(draft: Draft) -> PodView | None:
    """A pod that still runs."""
    return next((p for p in draft.seen.pods if p.alive), None)


def _workload(draft: Draft, job: JobView) -> WorkloadView | None:
    return next((w for w in draft.seen.workloads if w.job_uid == job.uid and not w.finished), None)


def _is_kueues(draft: Draft, job: JobView) -> bool:
    """Whether Kueue alone starts and stops a Job. With a default LocalQueue, or where it manages Jobs without one, it takes up what we gave it no queue for."""
    return bool(job.queue) or _workload(draft, job) is not None


def _pause(wanted: bool) -> Body:
    return {"metadata": {"annotations": {names.ANNOTATION_PAUSED: "true" if wanted else None}}, "spec": {"active": not wanted}}


def _carry_over(draft: Draft, wanted: bool, live: list[JobView]) -> None:
    """Bring spec.suspend to what is under way."""
    changes: list[tuple[Ref, Body]] = []
    for job in live:
        if not _is_kueues(draft, job):
            if job.suspended != wanted:
                changes.append((Ref("batch/v1", "Job", job.name), {"spec": {"suspend": wanted}}))
        elif (load := _workload(draft, job)) and (load.active if wanted else load.paused and not load.active):
            changes.append((Ref(KUEUE, "Workload", load.name), _pause(wanted)))
    draft.act(patch=(*draft.plan.patch, *changes))


def _quota(draft: Draft, live: list[JobView]) -> bool:
    """State what Kueue says of the Job under way. True while it has no quota and nothing of it runs."""
    conditions = draft.conditions
    if conditions.is_true(ConditionType.TRAINED):
        return False  # it has given its quota back, and that was said
    job = next((j for j in live if _is_kueues(draft, j)), None)
    if job is None:
        conditions.drop(ConditionType.QUOTA_RESERVED)  # between two attempts nobody holds or waits for quota
        return False
    load, queue = _workload(draft, job), job.queue
    if load is None:
        message = f"waiting for Kueue to take the Job up in LocalQueue {queue}; is Kueue installed, and does it manage this namespace?"
        conditions.set(ConditionType.QUOTA_RESERVED, "Unknown", Reason.WAITING_FOR_QUEUE, message)
    elif load.reserved and load.checks:
        conditions.set(ConditionType.QUOTA_RESERVED, "Unknown", Reason.ADMISSION_CHECKS, f"quota is reserved, and admission checks are to pass: {load.checks}")
    elif load.reserved:
        conditions.set(ConditionType.QUOTA_RESERVED, "True", load.reason or Reason.QUOTA_RESERVED, load.message)
    else:
        reason = load.reason or load.evicted or Reason.WAITING_FOR_QUEUE
        waits = f"waiting for quota in LocalQueue {queue}" if queue else "Kueue manages Jobs without a queue here: name one in spec.queue in a new job"
        conditions.set(ConditionType.QUOTA_RESERVED, "False", reason, load.message or waits)
    return job.at_rest and not (load and load.reserved and not load.checks)


def hold(draft: Draft) -> Hold:
    """Carry spec.suspend over and state Suspended and QuotaReserved."""
    seen, wanted = draft.seen, draft.seen.spec.suspend
    live = [j for j in seen.jobs if j.live]
    _carry_over(draft, wanted, live)
    queued = _quota(draft, live)
    busy = _busy(draft)
    # The Job controller's own word counts, not only the absence of pods: our view of pods may be older than that of Jobs.
    quiet = busy is None and all(j.at_rest for j in live)
    # Kueue may start a Job at any time as long as its Workload is active.
    startable = [j for j in live if _is_kueues(draft, j) and not ((load := _workload(draft, j)) and not load.active)]
    since = max((j.suspended_at for j in live), default="")
    if wanted:
        if quiet and not startable:
            told = draft.conditions.get(ConditionType.SUSPENDED)
            if told is None or told.status != "True" or told.observed_generation != seen.owner.generation:
                draft.look()  # a Job that has just been made, for this spec or the one before, may not be in the cache yet
            message = "spec.suspend is true; set it to false to go on from the newest checkpoint"
            draft.conditions.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
        else:
            if quiet:
                message = "waiting for Kueue to pause the Workload"
            elif busy and busy.node:
                message = f"waiting for pod {busy.name} on node {busy.node} to commit its checkpoint and end. {LOST_NODE}"
            else:
                message = f"waiting for {f'pod {busy.name}' if busy else 'the last pod'} to end"
            draft.conditions.set(ConditionType.SUSPENDED, "Unknown", Reason.SUSPENDING, message)
    elif draft.conditions.get(ConditionType.SUSPENDED):
        draft.conditions.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)
    return Hold(suspended=wanted, at_rest=quiet and ((wanted and not startable) or queued), since=since)


def count_time(draft: Draft, found: Hold) -> None:
    """Run or stop the clock of activeDeadlineSeconds."""
    status, now = draft.status, draft.now
    running = not (found.at_rest or draft.final)
    if running and status.active_since is None:
        draft.update(active_since=clock.text(now))
    elif not running and status.active_since is not None:
        begin = clock.seconds(status.active_since)
        # The operator may have been away: the Job controller knows when the pods were stopped.
        end = clock.seconds(found.since) if found.since and clock.seconds(found.since) >= begin else now
        draft.update(active_since=None, active_seconds=status.active_seconds + max(0, round(min(end, now) - begin)))


def check_deadline(draft: Draft) -> None:
    """Fail a job whose time is over."""
    limit, status = draft.seen.spec.active_deadline_seconds, draft.status
    if limit is None or draft.final or status.active_since is None:
        return
    used = status.active_seconds + draft.now - clock.seconds(status.active_since)
    if used < limit:
        draft.requeue(limit - used)
        return
    draft.act(propose=())  # what is proposed in this very round is not
    draft.update(endpoint=draft.seen.status.endpoint)
    told = f"the job was active for {round(used)} s; spec.activeDeadlineSeconds is {limit}. "
    message = told + (_committed(draft) or "Checkpoints stay in storage. Create a new job with a longer deadline, or without one")
    _cut_off(draft, message)
    draft.fail(Reason.DEADLINE_EXCEEDED, message)
    count_time(draft, Hold())


def _committed(draft: Draft) -> str:
    """What becomes of an adapter that is there; empty: there is none."""
    artifact, endpoint = draft.status.artifact, draft.status.endpoint
    if artifact is None:
        return ""
    on_its_way = f"ModelEndpoint {endpoint.name} goes on with it by itself" if endpoint and endpoint.proposed else "propose it to a ModelEndpoint by hand"
    return f"The adapter is committed at {artifact.adapter.uri}: {on_its_way}"


def _cut_off(draft: Draft, message: str) -> None:
    """The step that is under way ends with the job."""
    steps = (ConditionType.DATA_READY, ConditionType.TRAINED)
    unfinished = [kind for kind in steps if not draft.conditions.is_true(kind)][:1]
    last = (ConditionType.EVALUATED, ConditionType.DEPLOYED)
    for kind in unfinished or [kind for kind in last if draft.conditions.get(kind) and not draft.conditions.is_true(kind)]:
        draft.conditions.set(kind, "False", Reason.DEADLINE_EXCEEDED, message)
    ended = {"ended_at": clock.text(draft.now), "reason": Reason.DEADLINE_EXCEEDED, "message": message[:1000]}
    draft.update(attempts=[a if a.ended_at else a.model_copy(update=ended) for a in draft.status.attempts])
