"""What a FineTuneJob needs next."""

from dataclasses import replace
from typing import Any

from finetune_operator import clock, names
from finetune_operator.api.finetunejob import ArtifactStatus, Attempt, DatasetStatus, Display, Progress, RunStatus
from finetune_operator.api.meta import ConditionType
from finetune_operator.build import config as build_config
from finetune_operator.build.job import step_job
from finetune_operator.names import Step
from finetune_operator.progress import duration
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings
from finetune_runtime.contract.artefact import REPORT_DIR, REPORT_PAGE
from finetune_runtime.contract.extra_args import refusals
from finetune_runtime.contract.result import Reason as StepReason
from finetune_runtime.contract.result import StepResult

from .deploy import deploy
from .status import Conditions, deciding, is_final, phase
from .step import Stand, StepState, step_state
from .types import JobState, Plan, Ref

MAX_ATTEMPTS = 10
KEPT_JOBS = 3  # Kubernetes Jobs of past attempts that stay for `kubectl logs`
_CONDITION = {Step.PREPARE: ConditionType.DATA_READY, Step.TRAIN: ConditionType.TRAINED}


class _Draft:
    """Status and plan under construction."""

    def __init__(self, seen: JobState, now: float) -> None:
        self.seen, self.now = seen, now
        self.status = seen.status
        self.conditions = Conditions(seen.status.conditions, seen.owner.generation, clock.text(now))
        self.plan = Plan()

    def update(self, **fields: Any) -> None:
        self.status = self.status.model_copy(update=fields)

    def act(self, **fields: Any) -> None:
        self.plan = replace(self.plan, **fields)

    def requeue(self, seconds: float | None) -> None:
        if seconds is not None:
            soonest = seconds if self.plan.requeue_after is None else min(seconds, self.plan.requeue_after)
            self.act(requeue_after=soonest)

    def fail(self, reason: str, message: str) -> None:
        self.conditions.set(ConditionType.SUCCEEDED, "False", reason, message)
        self.update(completion_time=clock.text(self.now))

    def finish(self) -> Plan:
        shown = deciding(self.conditions)
        progress = self.status.progress
        final = is_final(self.conditions.all())
        trained = self.conditions.is_true(ConditionType.TRAINED)
        self.update(
            observed_generation=self.seen.owner.generation,
            phase=phase(self.conditions),
            reason=shown.reason if shown else "",
            message=shown.message if shown else "",
            conditions=self.conditions.all(),
            display=_display(progress, running=not final and not trained) if progress else None,
        )
        return replace(self.plan, status=self.status.dump())


def _display(progress: Progress, *, running: bool) -> Display | None:
    """Texts for the columns; None rather than an empty object, which server-side apply would turn into a null that the CRD refuses."""
    shown = Display(
        step=f"{progress.step}/{progress.total_steps}" if progress.total_steps else None,
        eta=duration(progress.eta_seconds) if running and progress.eta_seconds is not None else None,
    )
    return shown if shown.step or shown.eta else None


def _remember(attempts: list[Attempt], record: Attempt | None) -> list[Attempt]:
    if record is None:
        return attempts
    kept = [a for a in attempts if (a.step, a.number) != (record.step, record.number)]
    return [*kept, record][-MAX_ATTEMPTS:]


def _record_data(draft: _Draft, result: StepResult) -> None:
    if result.data:
        data = result.data
        draft.update(
            dataset=DatasetStatus(
                train_rows=data.train_rows, validation_rows=data.validation_rows, invalid_rows=data.invalid_rows,
                tokens=data.tokens, longest=data.longest, sha256=data.sha256, warnings=data.warnings[:32],
            ),
            run=(draft.status.run or RunStatus()).model_copy(
                update={"dataset_sha256": data.sha256, "model_revision": data.model_revision, "model_type": data.model_type, "template": data.template}
            ),
        )  # fmt: skip


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _record_run(draft: _Draft, result: StepResult | None) -> None:
    """What a training pod ran, however it ended."""
    if result and (train := result.train) and train.versions:
        found = {
            "micro_batch_size": train.micro_batch or None, "stopped_early": train.stopped_early or None,
            "command": train.command or None, "versions": train.versions,
        }  # fmt: skip
        draft.update(run=(draft.status.run or RunStatus()).model_copy(update={name: value for name, value in found.items() if value is not None}))


def _record_training(draft: _Draft, result: StepResult) -> None:
    train = result.train
    if train is None or train.adapter is None:
        return
    before = draft.status.progress or Progress()
    draft.update(
        artifact=ArtifactStatus(adapter=train.adapter, step=train.adapter_step or train.step, loss=_short(train.loss), eval_loss=_short(train.eval_loss)),
        progress=before.model_copy(
            update={
                "step": train.step, "total_steps": train.total_steps, "percent": 100, "eta_seconds": None,
                "loss": _short(train.loss) or before.loss, "eval_loss": _short(train.eval_loss) or before.eval_loss,
            }
        ),
    )  # fmt: skip


def _observe_progress(draft: _Draft) -> None:
    """Take the newest report; a report of before the last status never takes a job back."""
    reported, known = draft.seen.progress, draft.status.progress
    if draft.conditions.is_true(ConditionType.TRAINED):
        return  # the result has the last word
    if reported and reported.total_steps == 0 and known:
        return  # a new pod that is still loading: what is known stays
    if reported and (known is None or (reported.updated_at or "") >= (known.updated_at or "")):
        # Right after a restart the pod has no loss yet: keep showing the last one.
        keep = {k: v for k, v in (known.dump() if known else {}).items() if k in ("loss", "evalLoss")}
        draft.update(progress=Progress.model_validate({**keep, **reported.dump()}))


def _advance(draft: _Draft, settings: Settings, step: Step) -> bool:
    """Bring one step forward. True when it is done and the next one may begin."""
    seen, condition = draft.seen, _CONDITION[step]
    failures = draft.status.failures.get(step, 0)
    state = step_state(step, draft.status.attempts, failures, seen.jobs, seen.pods, seen.spec.retries, draft.now)
    record = state.record
    if state.result and state.result.train and record:
        record = record.model_copy(update={"resumed_from": state.result.train.resumed_from})
    draft.update(
        attempts=_remember(draft.status.attempts, record),
        failures={**draft.status.failures, step: state.failures} if state.failures else draft.status.failures,
        interruptions=draft.status.interruptions + state.interruptions,
    )
    if step is Step.TRAIN:
        draft.update(attempt=state.number)
        _record_run(draft, state.result)
    draft.requeue(state.retry_in)
    if state.stand is Stand.START:
        _start(draft, settings, step, state)
    elif state.stand is Stand.DONE:
        return _complete(draft, step, state)
    elif state.stand is Stand.FAILED:
        draft.conditions.set(condition, "False", state.reason, state.message)
        draft.fail(state.reason, state.message)
    else:
        draft.conditions.set(condition, "Unknown", state.reason, state.message)
    return False


def _start(draft: _Draft, settings: Settings, step: Step, state: StepState) -> None:
    """Make the Kubernetes Job of the next attempt, and drop those of long ago."""
    seen = draft.seen
    job = step_job(seen.owner, seen.spec, settings, step, state.number)
    past = [j for j in seen.jobs if j.step == step and j.attempt <= state.number - KEPT_JOBS and not j.deleting]
    draft.act(create=(job,), delete=tuple(Ref("batch/v1", "Job", j.name) for j in past))
    if not any(a.step == step and a.number == state.number for a in draft.status.attempts):
        started = Attempt(step=step, number=state.number, started_at=clock.text(draft.now))
        draft.update(attempts=_remember(draft.status.attempts, started))
    message = "the pod is being created" + (f"; the last attempt failed: {state.message}" if state.message and state.number > 1 else "")
    draft.conditions.set(_CONDITION[step], "Unknown", Reason.STARTING if state.number == 1 else state.reason, message)


def _complete(draft: _Draft, step: Step, state: StepState) -> bool:
    """Record the result of a step: from now on nothing that happens to its Job or pods matters."""
    if state.result is None:
        return False
    if step is Step.PREPARE:
        _record_data(draft, state.result)
    else:
        _record_training(draft, state.result)
        if draft.status.artifact is None:
            message = "the training pod reported success without a committed adapter: its image does not fit this operator's version"
            draft.conditions.set(ConditionType.TRAINED, "False", Reason.POD_FAILED, message)
            draft.fail(Reason.POD_FAILED, message)
            return False
    draft.conditions.set(_CONDITION[step], "True", Reason.COMPLETED, state.message)
    return True


def _suspend(draft: _Draft) -> bool:
    """Carry spec.suspend over to the Kubernetes Job under way. True while the job must not go on."""
    seen, wanted = draft.seen, draft.seen.spec.suspend
    live = [j for j in seen.jobs if not (j.complete or j.failed or j.deleting)]
    draft.act(patch=tuple((Ref("batch/v1", "Job", j.name), {"spec": {"suspend": wanted}}) for j in live if j.suspended != wanted))
    if not wanted:
        if draft.conditions.get(ConditionType.SUSPENDED):
            draft.conditions.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)
        return False
    busy = [p for p in seen.pods if p.parent in {j.name for j in seen.jobs} and p.phase in ("Pending", "Running")]
    if busy:
        draft.conditions.set(ConditionType.SUSPENDED, "Unknown", Reason.SUSPENDING, f"waiting for pod {busy[0].name} to commit its checkpoint and end")
    else:
        draft.conditions.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend is true; set it to false to go on from the newest checkpoint")
    return True


def decide(seen: JobState, settings: Settings, now: float) -> Plan:
    """Plan for a FineTuneJob at `now` (seconds)."""
    if is_final(seen.status.conditions):
        return Plan(status=seen.status.dump())
    draft = _Draft(seen, now)
    draft.update(start_time=draft.status.start_time or clock.text(now))
    conditions = draft.conditions
    if conditions.get(ConditionType.SUCCEEDED) is None:
        conditions.set(ConditionType.SUCCEEDED, "Unknown", Reason.RUNNING)
    if seen.conflicts:
        message = f"{', '.join(seen.conflicts)} exists and belongs to somebody else: delete or rename it, or give the job another name"
        conditions.set(ConditionType.ACCEPTED, "False", Reason.NAME_CONFLICT, message)
        draft.requeue(30)
        return draft.finish()
    if refused := refusals(seen.spec.training.extra_args):
        conditions.set(ConditionType.ACCEPTED, "False", StepReason.INVALID_CONFIG, " ".join(refused))
        draft.fail(StepReason.INVALID_CONFIG, " ".join(refused))
        return draft.finish()
    conditions.set(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the spec is valid and the names are free")
    _observe_progress(draft)
    labels = build_config.job_labels(seen.owner)
    content = build_config.job_config(seen.owner, seen.spec, settings)
    known = {"config_hash": content.config_hash(), "report": f"{content.prefix}/{REPORT_DIR}/{REPORT_PAGE}"}
    draft.update(run=(draft.status.run or RunStatus()).model_copy(update=known))
    config = build_config.config_map(seen.owner, names.config_map(seen.owner.name), labels, content, seen.ca)
    draft.act(apply=(config,))
    held = _suspend(draft)
    ready = conditions.is_true(ConditionType.DATA_READY) or (not held and _advance(draft, settings, Step.PREPARE))
    trained = conditions.is_true(ConditionType.TRAINED) or (ready and not held and _advance(draft, settings, Step.TRAIN))
    if not ready and conditions.get(ConditionType.TRAINED) is None:
        conditions.set(ConditionType.TRAINED, "Unknown", Reason.WAITING_FOR_DATA)
    if trained and not held:
        draft.act(apply=())  # nothing reads the configuration any more
        step = deploy(seen, draft.status)
        draft.act(create=draft.plan.create + step.create, propose=step.propose)
        draft.update(endpoint=step.endpoint)
        if step.required:
            conditions.set(ConditionType.DEPLOYED, step.ready, step.reason, step.message)
        if not step.required or step.ready == "True":
            conditions.set(ConditionType.SUCCEEDED, "True", Reason.COMPLETED, step.message or "the adapter is committed")
            draft.update(completion_time=clock.text(now))
    return draft.finish()
