"""What a job's status keeps of the results of its pods."""

from finetune_operator import clock
from finetune_operator.api.jobstatus import ArtifactStatus, Attempt, DatasetStatus, Progress, RunStatus
from finetune_operator.api.meta import ConditionType
from finetune_operator.observe import PodView
from finetune_operator.progress import STALE_AFTER, shown_in
from finetune_runtime.contract.fast_path import FastPathStatus
from finetune_runtime.contract.result import StepResult

from .draft import Draft
from .faults import result

MAX_ATTEMPTS = 10


def remember(attempts: list[Attempt], record: Attempt | None) -> list[Attempt]:
    """Attempts with `record` in its place; the oldest go first."""
    if record is None:
        return attempts
    kept = [a for a in attempts if (a.step, a.number) != (record.step, record.number)]
    return [*kept, record][-MAX_ATTEMPTS:]


def record_data(draft: Draft, found: StepResult) -> None:
    """What the prepare step found."""
    if (data := found.data) is None:
        return
    dataset = DatasetStatus(
        train_rows=data.train_rows, validation_rows=data.validation_rows, invalid_rows=data.invalid_rows,
        tokens=data.tokens, longest=data.longest, sha256=data.sha256, warnings=data.warnings[:32],
    )  # fmt: skip
    origin = {"dataset_sha256": data.sha256, "model_revision": data.model_revision, "model_type": data.model_type, "template": data.template}
    fast_path = None if data.fast_path is None else FastPathStatus(used=False if data.fast_path else None, reason=data.fast_path)
    draft.update(dataset=dataset, model=data.shape, run=(draft.status.run or RunStatus()).model_copy(update={**origin, "fast_path": fast_path}))


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def record_run(draft: Draft, found: StepResult | None) -> None:
    """What a training pod ran, however it ended."""
    if found and (train := found.train) and train.versions:
        said = {
            "micro_batch_size": train.micro_batch or None, "stopped_early": train.stopped_early or None,
            "command": train.command or None, "versions": train.versions, "fast_path": train.fast_path,
        }  # fmt: skip
        draft.update(run=(draft.status.run or RunStatus()).model_copy(update={name: value for name, value in said.items() if value is not None}))


def record_training(draft: Draft, found: StepResult) -> None:
    """The committed adapter."""
    train = found.train
    if train is None or train.adapter is None:
        return
    before = draft.status.progress or Progress()
    done = {
        "step": train.step, "total_steps": train.total_steps, "percent": 100, "eta_seconds": None, "stale": None,
        "checkpoint_step": max(before.checkpoint_step, train.committed_step),
        "loss": _short(train.loss) or before.loss, "eval_loss": _short(train.eval_loss) or before.eval_loss,
    }  # fmt: skip
    artifact = ArtifactStatus(adapter=train.adapter, step=train.adapter_step or train.step, loss=_short(train.loss), eval_loss=_short(train.eval_loss))
    draft.update(artifact=artifact, progress=before.model_copy(update=done))


def observe_progress(draft: Draft) -> None:
    """Take the newest report; a report of before the last status never takes a job back."""
    if draft.conditions.is_true(ConditionType.TRAINED):
        return  # the result has the last word
    reported, known = draft.seen.progress, draft.status.progress
    wait = shown_in(reported, known) if reported else None
    draft.requeue(wait or None)
    # A new pod that is still loading reports no total yet: what is known stays.
    if reported and wait == 0 and (reported.total_steps or known is None):
        # Right after a restart the pod has no loss yet: keep showing the last one.
        keep = {k: v for k, v in (known.dump() if known else {}).items() if k in ("loss", "evalLoss")}
        taken = Progress.model_validate({**keep, **reported.dump()})
        committed = max(taken.checkpoint_step, known.checkpoint_step if known else 0)
        known = taken.model_copy(update={"checkpoint_step": committed})
    if known:
        draft.update(progress=known)


def observe_stillness(draft: Draft, pod: PodView | None) -> None:
    """Mark progress that a running pod has not renewed for long."""
    progress, reported = draft.status.progress, draft.seen.progress
    if progress is None:
        return
    running = pod is not None and pod.running and not pod.deleting
    # A new pod has its time to load the model; while it does, it reports without having steps to show.
    heard = max(progress.updated_at or "", (reported.updated_at or "") if reported else "", pod.created_at if pod else "")
    left = clock.seconds(heard) + STALE_AFTER - draft.now if running and heard else None
    stale = left is not None and left <= 0
    known = running and pod is not None and (progress.updated_at or "") >= pod.created_at  # when a pod that is not at work will be done, nobody knows
    draft.update(progress=progress.model_copy(update={"stale": stale or None, **({} if known else {"eta_seconds": None})}))
    draft.requeue(None if stale else left)


def committed(draft: Draft, pods: tuple[PodView, ...]) -> int:
    """Step of the newest checkpoint in storage, as far as pods have told."""
    told = (found.train.committed_step for p in pods if (found := result(p.ended)) and found.train)
    return max((draft.status.progress.checkpoint_step if draft.status.progress else 0), *told, 0)
