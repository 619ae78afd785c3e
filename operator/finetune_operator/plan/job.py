"""What a FineTuneJob needs next."""

from finetune_operator import clock
from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.jobstatus import Attempt, FineTuneJobStatus, RunStatus
from finetune_operator.api.meta import ConditionType
from finetune_operator.build import config as build_config
from finetune_operator.build.job import step_job
from finetune_operator.names import Step
from finetune_operator.observe import JobView
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings
from finetune_runtime.contract.artefact import REPORT_DIR, REPORT_PAGE
from finetune_runtime.contract.evaluation import fault as evaluation_fault
from finetune_runtime.contract.extra_args import refusals
from finetune_runtime.contract.result import Reason as StepReason
from finetune_runtime.contract.result import StepResult

from .deploy import deploy, obstacle
from .draft import Draft, leftovers
from .faults import refusal
from .fit import check_fit, minimum_mebibytes
from .hold import Hold, check_deadline, count_time, hold
from .records import committed, observe_progress, observe_stillness, record_data, record_run, record_training, remember
from .status import Conditions, is_final
from .step import Stand, StepState, StepView, step_state
from .types import JobState, Plan, Ref

KEPT_JOBS = 3  # Kubernetes Jobs of past attempts that stay for `kubectl logs`
MAX_IDLE = 3  # interruptions in a row without a new checkpoint after which a job ends
_CONDITION = {Step.PREPARE: ConditionType.DATA_READY, Step.TRAIN: ConditionType.TRAINED}


def _view(draft: Draft, step: Step) -> StepView:
    seen = draft.seen
    stated = draft.conditions.get(_CONDITION[step])
    taken = next((w.evicted for w in seen.workloads if w.evicted and not w.reserved and not w.paused and not w.finished), "")
    return StepView(
        step=step, attempts=draft.status.attempts, failures=draft.status.failures.get(step, 0), jobs=seen.jobs, pods=seen.pods,
        retries=seen.spec.retries, scheduling_timeout=seen.spec.scheduling_timeout_seconds, preempted=taken,
        noted=stated is not None and stated.reason in (Reason.STOPPING, Reason.PENDING),
    )  # fmt: skip


def _count_interruption(draft: Draft, step: Step, record: Attempt, *, unseen: bool) -> Attempt:
    """The pod of an attempt was taken away and another one stands in. Did the one that went get anywhere?

    `unseen`: nobody can say, because it went while the operator was away; the row of those that got nowhere ends with it.
    """
    status = draft.status
    came_from = record.resumed_from or 0
    reached = max(came_from, committed(draft, draft.seen.pods)) if step is Step.TRAIN else 0
    # Whoever is preempted in a queue again and again is not at fault, and loses nothing but time.
    blameless = unseen or reached > came_from or record.interrupted_by == Reason.PREEMPTED
    draft.update(interruptions=status.interruptions + 1, idle_interruptions=0 if blameless else status.idle_interruptions + 1)
    return record.model_copy(update={"interruptions": (record.interruptions or 0) + 1, "resumed_from": reached if step is Step.TRAIN else None})


def _believe(draft: Draft, record: Attempt, found: StepResult) -> Attempt:
    """What a pod says at its end of where it came from: the one before it may have gone unseen, with its word on what it had committed."""
    if (train := found.train) is None:
        return record
    if max(train.resumed_from, train.committed_step) > (record.resumed_from or 0):
        draft.update(idle_interruptions=0)
    return record.model_copy(update={"resumed_from": train.resumed_from})


def _advance(draft: Draft, settings: Settings, step: Step) -> bool:
    """Bring one step forward. True when it is done and the next one may begin."""
    state = step_state(_view(draft, step), draft.now)
    if state.by_absence:
        draft.look()
    record = state.record
    if record and state.replaced:
        record = _count_interruption(draft, step, record, unseen=state.unseen)
    if record and state.result:
        record = _believe(draft, record, state.result)
    draft.update(
        attempts=remember(draft.status.attempts, record),
        failures={**draft.status.failures, step: state.failures} if state.failures else draft.status.failures,
    )
    if step is Step.TRAIN:
        draft.update(attempt=state.number)
        record_run(draft, state.result)
        observe_stillness(draft, state.pod)
    draft.requeue(state.retry_in)
    if draft.status.idle_interruptions >= MAX_IDLE and state.stand is Stand.WAIT and state.replaced:
        _give_up(draft, step, record)
    elif state.stand is Stand.START:
        _start(draft, settings, step, state)
    elif state.stand is Stand.DONE:
        return _complete(draft, step, state)
    elif state.stand is Stand.FAILED:
        draft.conditions.set(_CONDITION[step], "False", state.reason, state.message)
        draft.fail(state.reason, state.message)
    else:
        draft.conditions.set(_CONDITION[step], "Unknown", state.reason, state.message)
        if state.reason == Reason.IMAGE_PULL_FAILED:
            _renew(draft, settings, step, state.number)
    return False


def _renew(draft: Draft, settings: Settings, step: Step, number: int) -> None:
    """Drop a Job whose pod waits for an image that the installation no longer names: its template cannot be changed, so it is made again."""
    old = [j for j in draft.seen.jobs if j.step == step and j.attempt == number and j.image != settings.trainer_image and j.live]
    draft.act(delete=(*draft.plan.delete, *(Ref("batch/v1", "Job", j.name, j.uid) for j in old)))


def _give_up(draft: Draft, step: Step, record: Attempt | None) -> None:
    """Fail a job whose pods are taken away before they get anywhere."""
    cause = f" (the last one by {record.interrupted_by})" if record and record.interrupted_by else ""
    cure = (
        "checkpoint more often with checkpoints.everySteps, give the pod a priority class or a node that is not drained, and see whether it uses more disk or "
        "memory than it asks for"
    )
    message = f"{MAX_IDLE} pods in a row were taken away{cause} before they had committed anything new: {cure}"
    draft.conditions.set(_CONDITION[step], "False", Reason.NO_PROGRESS, message)
    draft.fail(Reason.NO_PROGRESS, message)


def _start(draft: Draft, settings: Settings, step: Step, state: StepState) -> None:
    """Make the Kubernetes Job of the next attempt, and drop those of long ago."""
    seen = draft.seen
    job = step_job(seen.owner, seen.spec, settings, step, state.number, minimum_mebibytes=minimum_mebibytes(draft))
    past = [j for j in seen.jobs if j.step == step and j.attempt <= state.number - KEPT_JOBS and not j.deleting]
    draft.act(create=(*draft.plan.create, job), delete=(*draft.plan.delete, *(Ref("batch/v1", "Job", j.name, j.uid) for j in past)))
    if not any(a.step == step and a.number == state.number for a in draft.status.attempts):
        started = Attempt(step=step, number=state.number, started_at=clock.text(draft.now))
        draft.update(attempts=remember(draft.status.attempts, started))
    if step is Step.TRAIN and seen.spec.queue:
        draft.conditions.set(ConditionType.QUOTA_RESERVED, "Unknown", Reason.WAITING_FOR_QUEUE, f"entering LocalQueue {seen.spec.queue.name}")
    message = "the pod is being created" + (f"; the last attempt failed: {state.message}" if state.message and state.number > 1 else "")
    draft.conditions.set(_CONDITION[step], "Unknown", Reason.STARTING if state.number == 1 else state.reason, message)


def _complete(draft: Draft, step: Step, state: StepState) -> bool:
    """Record the result of a step: from now on nothing that happens to its Job or pods matters."""
    if state.result is None:
        return False
    if step is Step.PREPARE:
        record_data(draft, state.result)
        draft.update(idle_interruptions=0)
    else:
        record_training(draft, state.result)
        if draft.status.artifact is None:
            message = "the training pod reported success without a committed adapter: its image does not fit this operator's version"
            draft.conditions.set(ConditionType.TRAINED, "False", Reason.POD_FAILED, message)
            draft.fail(Reason.POD_FAILED, message)
            return False
        if draft.seen.spec.queue:
            draft.conditions.set(ConditionType.QUOTA_RESERVED, "True", Reason.COMPLETED, "training is done and has given its quota back")
    draft.conditions.set(_CONDITION[step], "True", Reason.COMPLETED, state.message)
    return True


def _accept(draft: Draft) -> bool:
    """State Accepted. False when the job cannot go on."""
    seen, conditions = draft.seen, draft.conditions
    if conditions.get(ConditionType.SUCCEEDED) is None:
        conditions.set(ConditionType.SUCCEEDED, "Unknown", Reason.RUNNING)
    if seen.conflicts:
        message = f"{', '.join(seen.conflicts)} exists and belongs to somebody else: delete or rename it, or give the job another name"
        conditions.set(ConditionType.ACCEPTED, "False", Reason.NAME_CONFLICT, message)
        draft.requeue(30)
        return False
    if seen.refused:
        conditions.set(ConditionType.ACCEPTED, "False", Reason.REFUSED, refusal(seen.refused.values()))
        draft.requeue(30)
        return False
    if refused := refusals(seen.spec.training.extra_args):
        conditions.set(ConditionType.ACCEPTED, "False", StepReason.INVALID_CONFIG, " ".join(refused))
        draft.fail(StepReason.INVALID_CONFIG, " ".join(refused))
        return False
    if seen.spec.evaluation and (bad := evaluation_fault(seen.spec.evaluation)):
        conditions.set(ConditionType.ACCEPTED, "False", StepReason.INVALID_CONFIG, f"spec.{bad}")
        draft.fail(StepReason.INVALID_CONFIG, f"spec.{bad}")
        return False
    conditions.set(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the spec is valid and the names are free")
    return True


def _configure(draft: Draft, settings: Settings) -> None:
    """Keep the configuration of the pods in its ConfigMap."""
    made = build_config.job_configuration(draft.seen.owner, draft.seen.spec, settings, draft.seen.ca)
    known = {"config_hash": made.config_hash, "report": f"{made.prefix}/{REPORT_DIR}/{REPORT_PAGE}"}
    draft.update(run=(draft.status.run or RunStatus()).model_copy(update=known))
    draft.act(apply=(made.config_map,))


def asks_for_nodes(spec: FineTuneJobSpec, status: FineTuneJobStatus, jobs: tuple[JobView, ...]) -> bool:
    """Whether the next decision may compare the training with the nodes there are."""
    told = {c.type: c.status for c in status.conditions}
    checked = told.get(ConditionType.DATA_READY) == "True" or any(j.step == Step.PREPARE and j.complete for j in jobs)
    begun = told.get(ConditionType.TRAINED) == "True" or any(a.step == Step.TRAIN for a in status.attempts)
    return checked and not begun and not spec.resources.gpu_memory


def _steps(draft: Draft, settings: Settings, found: Hold) -> bool:
    """Data, then fit, then training. True when the adapter is committed."""
    conditions = draft.conditions
    if conditions.is_true(ConditionType.TRAINED):
        return True
    conditions.drop(ConditionType.DEPLOYED)  # stated anew where it is asked
    if found.suspended:
        if found.at_rest:  # the pod that the user stopped was not interrupted by anybody
            draft.update(attempts=[a if a.ended_at else a.model_copy(update={"pod": None, "pod_created_at": None}) for a in draft.status.attempts])
        return False
    if not conditions.is_true(ConditionType.DATA_READY) and not _advance(draft, settings, Step.PREPARE):
        if conditions.get(ConditionType.TRAINED) is None:
            conditions.set(ConditionType.TRAINED, "Unknown", Reason.WAITING_FOR_DATA)
        return False
    begun = any(a.step == Step.TRAIN for a in draft.status.attempts)
    return (begun or (check_fit(draft) and _check_endpoint(draft))) and _advance(draft, settings, Step.TRAIN)


def _check_endpoint(draft: Draft) -> bool:
    """State Deployed where the endpoint could not serve what is trained. False: no GPU is taken for that."""
    under_way = any(j.step == Step.TRAIN for j in draft.seen.jobs)  # by a round that was cut short
    if under_way or (found := obstacle(draft.seen)) is None:
        return True
    draft.conditions.set(ConditionType.DEPLOYED, found.status, found.reason, found.message)
    return False


def _deploy(draft: Draft) -> None:
    """Hand the adapter over to its endpoint, and end."""
    draft.act(apply=())  # nothing reads the configuration any more
    step = deploy(draft.seen, draft.status)
    if step.failed or step.propose or step.create:
        draft.look()  # a cache may show the endpoint as it was before it was told of this version; and where it is not there, the job may have gone with it
    draft.act(create=draft.plan.create + step.create, propose=step.propose)
    draft.update(endpoint=step.endpoint, evaluation=step.evaluation)
    for kind, stated in ((ConditionType.EVALUATED, step.evaluated), (ConditionType.DEPLOYED, step.deployed)):
        if stated:
            draft.conditions.set(kind, stated.status, stated.reason, stated.message)
    if step.failed:
        draft.fail(step.failed.reason, step.failed.message)
    elif step.done:
        draft.succeed(step.deployed.message if step.deployed else "the adapter is committed")


def _ended(seen: JobState, now: float) -> Plan:
    """Plan for a job that has succeeded or failed: its status stands; what still runs must not, and its time to be kept may be over."""
    # A change of what may still be changed is taken note of: kstatus and `kubectl wait` would wait for that.
    conditions = Conditions(seen.status.conditions, seen.owner.generation, clock.text(now))
    conditions.observed()
    status = seen.status.model_copy(update={"observed_generation": seen.owner.generation, "conditions": conditions.all()})
    ttl, plan = seen.spec.ttl_seconds_after_finished, Plan(delete=leftovers(seen), status=status.dump())
    if ttl is None or seen.status.completion_time is None:
        return plan
    left = clock.seconds(seen.status.completion_time) + ttl - now
    return Plan(delete=plan.delete, status=plan.status, expire=left <= 0, requeue_after=max(0.0, left) or None)


def decide(seen: JobState, settings: Settings, now: float) -> Plan:
    """Plan for a FineTuneJob at `now` (seconds)."""
    if is_final(seen.status.conditions):
        return _ended(seen, now)
    draft = Draft(seen, now)
    draft.update(start_time=draft.status.start_time or clock.text(now))
    accepted, found = _accept(draft), hold(draft)
    if accepted:
        observe_progress(draft)
        _configure(draft, settings)
        if _steps(draft, settings, found) and not found.suspended:
            _deploy(draft)
    count_time(draft, found)
    check_deadline(draft)
    return draft.finish()
