"""Status and plan of a FineTuneJob under construction."""

from dataclasses import replace
from typing import Any

from finetune_operator import clock
from finetune_operator.api.jobstatus import Display, Progress
from finetune_operator.api.meta import ConditionType
from finetune_operator.progress import duration
from finetune_operator.reasons import Reason

from .status import Conditions, deciding, phase, summarize
from .types import JobState, Plan, Ref


class Draft:
    """What one decision has come to so far."""

    def __init__(self, seen: JobState, now: float) -> None:
        self.seen, self.now = seen, now
        self.status = seen.status
        self.conditions = Conditions(seen.status.conditions, seen.owner.generation, clock.text(now))
        self.plan = Plan()

    @property
    def final(self) -> bool:
        """Whether the job has succeeded or failed."""
        succeeded = self.conditions.get(ConditionType.SUCCEEDED)
        return succeeded is not None and succeeded.status != "Unknown"

    def update(self, **fields: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def act(self, **fields: Any) -> None:
        """Change fields of the plan."""
        self.plan = replace(self.plan, **fields)

    def requeue(self, seconds: float | None) -> None:
        """Look again after so many seconds, or sooner when somebody else asked for that."""
        if seconds is not None:
            soonest = seconds if self.plan.requeue_after is None else min(seconds, self.plan.requeue_after)
            self.act(requeue_after=max(0.0, soonest))

    def look(self) -> None:
        """Ask for the objects as they are now: something is about to be concluded from what is not there, and caches may be behind."""
        if not self.seen.live:
            self.act(look=True)

    def fail(self, reason: str, message: str) -> None:
        """End the job."""
        self.conditions.set(ConditionType.SUCCEEDED, "False", reason, message)
        self.update(completion_time=clock.text(self.now))

    def succeed(self, message: str) -> None:
        """End the job."""
        self.conditions.set(ConditionType.SUCCEEDED, "True", Reason.COMPLETED, message)
        self.update(completion_time=clock.text(self.now))

    def finish(self) -> Plan:
        """The plan with the whole status."""
        conditions, final = self.conditions, self.final
        summarize(conditions, suspended=self.seen.spec.suspend)
        conditions.observed()
        if final:
            self.act(create=(), delete=tuple(dict.fromkeys((*self.plan.delete, *leftovers(self.seen)))))
        shown = deciding(conditions)
        progress = self.status.progress
        quota = conditions.get(ConditionType.QUOTA_RESERVED)
        waits = conditions.is_true(ConditionType.SUSPENDED) or (quota is not None and quota.status != "True")
        if progress and waits:  # nobody knows how long
            progress = progress.model_copy(update={"eta_seconds": None})
        running = not (final or waits or conditions.is_true(ConditionType.TRAINED))
        self.update(
            observed_generation=self.seen.owner.generation,
            phase=phase(conditions),
            reason=shown.reason if shown else "",
            message=shown.message if shown else "",
            conditions=conditions.all(),
            progress=progress,
            display=_display(progress, running=running) if progress else None,
        )
        made = (*self.plan.apply, *self.plan.create, *self.plan.propose)
        return replace(self.plan, status=self.status.dump(), untried=frozenset(body["metadata"]["name"] for body in made))


def leftovers(seen: JobState) -> tuple[Ref, ...]:
    """Kubernetes Jobs that must not go on because the FineTuneJob has ended."""
    return tuple(Ref("batch/v1", "Job", j.name, j.uid) for j in seen.jobs if j.live)


def _display(progress: Progress, *, running: bool) -> Display | None:
    """Texts for the columns; None rather than an empty object, which server-side apply would turn into a null that the CRD refuses."""
    eta = "stale" if progress.stale else duration(progress.eta_seconds) if progress.eta_seconds is not None else None
    shown = Display(step=f"{progress.step}/{progress.total_steps}" if progress.total_steps else None, eta=eta if running else None)
    return shown if shown.step or shown.eta else None
