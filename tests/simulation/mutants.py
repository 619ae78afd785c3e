"""Operators that are wrong on purpose, each in one way: a simulation that cannot fail proves nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from finetune_operator import children, clock, handlers, objects, observe, reconcile
from finetune_operator.apply import Applier
from finetune_operator.build import config as build_config
from finetune_operator.plan import draft, hold, job, status, step

from .api import Api
from .watches import WATCHED

Change = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is wrong, and which invariants may notice it first."""

    name: str
    change: Change
    caught_by: tuple[str, ...]
    weather: dict[str, Any] = field(default_factory=dict)  # what is not left to chance


def _set(target: Any, name: str, value: Any) -> Change:
    return lambda patch: patch.setattr(target, name, value)


def _around(target: Any, name: str, wrong: Callable[..., Any]) -> Change:
    """Replace a function by one that gets the right one first."""
    right = getattr(target, name)
    return _set(target, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))


def _all(*changes: Change) -> Change:
    def change(patch: pytest.MonkeyPatch) -> None:
        for one in changes:
            one(patch)

    return change


async def _from_caches(self: children.Children, owner: Any) -> children.Offspring:
    jobs, pods = self._cached(owner)
    return self._with_graves(owner, jobs, pods, live=True)


def _first_seen(self: objects.Objects, key: Any) -> Any:
    async def newest() -> Any:
        seen = next(iter(self._stores[key.kind].get((key.namespace, key.name), ())), None)
        return None if seen is None or "deletionTimestamp" in seen["metadata"] else seen

    return newest()


def _to_any_version(right: Any, self: Api, kind: str, key: Any, version: str, status: Any) -> Any:
    found = self.get(kind, key)
    return right(self, kind, key, found["metadata"]["resourceVersion"] if found else version, status)


async def _once(right: Any, *args: Any) -> None:
    await right(*args)


def _always_new(right: Any, self: status.Conditions, kind: Any, *args: Any) -> None:
    right(self, kind, *args)
    self._items[kind] = self._items[kind].model_copy(update={"last_transition_time": self._now})


def _any_generation(right: Any, self: Any, before: Any, generation: int, now: str) -> None:
    right(self, before, generation - int(now[-2]) % 2, now)


def _forgetful(right: Any, self: Any) -> Any:
    return [c for c in right(self) if c.type != "DataReady" or c.status != "True"]


def _made_up(right: Any, pod: Any) -> Any:
    found = right(pod)
    return found and replace(found, reason="Oops")


def _always(right: Any, self: Any, true: bool, kind: Any, cause: Any) -> None:
    right(self, True, kind, cause)


def _endless(right: Any, failed: Any, record: Any, failures: int, retries: Any, *args: Any) -> Any:
    return right(failed, record, failures, retries.model_copy(update={"limit": 99}), *args)


async def _write_always(right: Any, self: Any, key: Any, owner: Any, raw: Any, before: Any, plan: Any) -> None:
    await right(self, key, owner, {**raw, "status": {}}, before, plan)


def _other_digest(right: Any, draft_: Any, found: Any) -> None:
    right(draft_, found)
    if artifact := draft_.status.artifact:
        wrong = artifact.adapter.model_copy(update={"manifest_sha256": "0" * 64})
        draft_.update(artifact=artifact.model_copy(update={"adapter": wrong}))


def _other_content(right: Any, owner: Any, spec: Any, settings: Any) -> Any:
    found = right(owner, spec, settings)
    number = int(settings.trainer_image.rpartition(":")[2])
    return found.model_copy(update={"training": found.training.model_copy(update={"seed": number})})


def _rewrites(right: Any, attempts: Any, record: Any) -> Any:
    return [a.model_copy(update={"exit_code": (a.exit_code or 0) + 1}) if a.ended_at else a for a in right(attempts, record)]


def _many(right: Any, draft_: Any, step_: Any, record: Any, **seen: Any) -> Any:
    found = right(draft_, step_, record, **seen)
    draft_.update(interruptions=draft_.status.interruptions + 20)
    return found


def _begins_anew(right: Any, draft_: Any) -> Any:
    found = right(draft_)
    draft_.update(start_time=clock.text(draft_.now))
    return found


def _begins_at_the_end(right: Any, self: Any) -> Any:
    made = self.plan.create
    plan = right(self)
    return replace(plan, create=made)


def _without_owner(right: Any, owner: Any, name: str, labels: Any) -> Any:
    found = right(owner, name, labels)
    found.pop("ownerReferences")
    return found


def _restless(right: Any, self: Any) -> Any:
    plan = right(self)
    return replace(plan, status={**plan.status, "message": "tock" if self.seen.status.message == "tick" else "tick"})


def _all_applied(right: Any, self: Any) -> Any:
    plan = right(self)
    return replace(plan, apply=(*plan.apply, *plan.create), create=())


def _for_another(right: Any, owner: Any, spec: Any, settings: Any) -> Any:
    return right(owner.model_copy(update={"uid": f"{owner.uid}-2"}), spec, settings)


def _never_at_rest(right: Any, draft_: Any, found: Any) -> None:
    right(draft_, replace(found, at_rest=False))


def _not_queued(right: Any, raw: Any) -> Any:
    return replace(right(raw), queue="")


_NEVER_LOOKS = _set(children.Children, "look", _from_caches)
_LATE_PODS = {"lags": dict.fromkeys(WATCHED, 0.1) | {"Pod": 30.0}, "edits": 25, "window": 1500.0}

MUTANTS = (
    Mutant("absence is concluded from caches", _NEVER_LOOKS, ("one trainer", "suspended means nothing runs"), _LATE_PODS),
    Mutant(
        "suspended as soon as it is asked for",
        _all(_set(hold, "_busy", lambda _: None), _set(observe.JobView, "at_rest", property(lambda _: True))),
        ("suspended means nothing runs",),
    ),
    Mutant(
        "what was written is not remembered, and written over",
        _all(_set(objects.Objects, "newest", _first_seen), _around(Api, "apply_status", _to_any_version)),
        ("lastTransitionTime", "records stay", "terminal stays terminal"),
    ),
    Mutant("the end of a job is not respected", _set(job, "is_final", lambda _: False), ("terminal stays terminal",)),
    Mutant("the adapter's digest is made up", _around(job, "record_training", _other_digest), ("success has an artefact",)),
    Mutant("prepared data are prepared again", _set(status.Conditions, "is_true", lambda *_: False), ("done work is not done again",)),
    Mutant("retries have no limit", _around(step, "_failed", _endless), ("attempts within budget",), {"pod_failure": 0.9}),
    Mutant("conditions bear the time of the last look", _around(status.Conditions, "set", _always_new), ("lastTransitionTime",)),
    Mutant("conditions bear any generation", _around(status.Conditions, "__init__", _any_generation), ("observedGeneration",)),
    Mutant("a condition is forgotten", _around(status.Conditions, "all", _forgetful), ("conditions stay",)),
    Mutant("reasons are made up", _around(step, "waiting", _made_up), ("reasons",)),
    Mutant("the status is written in every round", _around(reconcile.Reconciler, "_report", _write_always), ("planning after applying is empty",)),
    Mutant("the status changes in every round", _around(draft.Draft, "finish", _restless), ("every schedule comes to rest",)),
    Mutant("Jobs of an ended job go on", _all(_set(draft, "leftovers", lambda _: ()), _set(job, "leftovers", lambda _: ())), ("nothing runs after the end",)),
    Mutant(
        "the round that ends a job begins another Job", _around(draft.Draft, "finish", _begins_at_the_end), ("nothing is begun by the round that ends a job",)
    ),
    Mutant(
        "a queued Job is started by us",
        _all(_around(children, "job_view", _not_queued), _around(handlers, "job_view", _not_queued)),
        ("spec.suspend of a queued Job is Kueue's",),
    ),
    Mutant("a Job is applied again and again", _around(draft.Draft, "finish", _all_applied), ("a Job is made once",)),
    Mutant("names of others are taken", _set(Applier, "_is_ours", staticmethod(lambda *_: True)), ("foreign objects are left alone",), {"edits": 20}),
    Mutant("a job never stops reconciling", _around(status.Conditions, "only_if", _always), ("kstatus",)),
    Mutant("interruptions are counted twenty times", _around(job, "_count_interruption", _many), ("numbers are true",)),
    Mutant("when a job began is not kept", _around(job, "_accept", _begins_anew), ("records stay",)),
    Mutant("ended attempts are written anew", _around(job, "remember", _rewrites), ("an ended attempt is history",)),
    Mutant("the configuration changes with the version", _around(build_config, "job_config", _other_content), ("trained work is not repeated",)),
    Mutant("pods work for another job", _around(build_config, "job_config", _for_another), ("a job trains for itself",)),
    Mutant("children have no owner", _around(build_config, "metadata", _without_owner), ("no orphans",)),
    Mutant("nobody looks again", _all(_around(reconcile.Reconciler, "reconcile", _once), _NEVER_LOOKS), ("every job ends or says what it waits for",)),
    Mutant("deadlines are not looked at", _set(job, "check_deadline", lambda _: None), ("a deadline ends a job",)),
    Mutant("time counts while a job is suspended", _around(job, "count_time", _never_at_rest), ("suspension stops the clock",)),
    Mutant("a mistake ends the round", _set(job, "check_deadline", lambda _: [].pop()), ("no exception",)),
)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The operator with one fault."""
    build_config._job_configuration.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        mutant.change(patch)
        yield
    build_config._job_configuration.cache_clear()
