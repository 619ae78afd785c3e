"""Operators that are wrong on purpose about shares of the traffic."""

from typing import Any

from finetune_operator.plan import canary, rollout
from finetune_operator.routes import Routes

from .mutants import Mutant, _all, _around, _set
from .rollout_mutants import _FINE, _ROLLING


def _too_much(right: Any, looked: Any) -> Any:
    found = right(looked)
    return {v: w + 5 if 0 < w < canary.EVERYTHING else w for v, w in found.items()}


def _keeps_share(right: Any, looked: Any, candidate: Any, *, passes: bool) -> Any:
    return candidate if candidate.step else right(looked, candidate, passes=passes)


def _impatient(right: Any, looked: Any, candidate: Any, **passed: Any) -> Any:
    begun = candidate.model_copy(update={"step_since": "2020-01-01T00:00:00Z"}) if candidate.step else candidate
    return right(looked, begun, **passed)


def _shrinks_first(right: Any, looked: Any, made: Any) -> Any:
    """The route follows a round later than the roles."""
    before = {v.name: v.role for v in looked.seen.status.versions}
    moved = any(before.get(v.name, v.role) != v.role for v in looked.versions.all())
    return () if moved else right(looked, made)


def _forgets_shares(right: Any, looked: Any) -> None:
    right(looked)
    for version in looked.versions.having("Current"):
        looked.versions.put(version.model_copy(update={"weight": 7 if version.weight is not None else None}))


def _before_the_gate(right: Any, looked: Any, candidate: Any, target: Any, verdict: Any) -> None:
    """A share for whoever answers, while the gate is still being asked."""
    right(looked, candidate, target, verdict)
    found = looked.versions.find(candidate.name)
    view = looked.deployment(candidate.name)
    if found and found.role == "Candidate" and canary.by_steps(looked) and view and view.ready:
        looked.versions.put(found.model_copy(update={"step": 10, "step_since": looked.seen.status.versions[0].since}))


async def _as_if_there(_: Routes) -> bool:
    return True


_STEPS = {**_ROLLING, "canary": 1.0, "late_gateway": 0.0}
_QUIET = {**_STEPS, **_FINE, "edits": 12}

SHARE_MUTANTS = (
    Mutant("shares add up to more than everything", _around(canary, "shares", _too_much), ("shares are whole",), _STEPS),
    Mutant(
        "a version keeps its share whatever its pods do",
        _all(_around(canary, "keep", _keeps_share), _set(canary, "judge", lambda *_: None)),
        ("a share goes to what answers",),
        {**_STEPS, "bad_versions": 0.5},
    ),
    Mutant("steps take no time", _around(canary, "advance", _impatient), ("a step lasts its time",), _QUIET),
    Mutant("pods go before weights do", _around(canary, "objects", _shrinks_first), ("a version with a share keeps its pods",), _QUIET),
    Mutant(
        "a route outlives its strategy",
        _set(canary, "leftovers", lambda _: ()),
        ("a route goes with its strategy",),
        {**_STEPS, "canary": 0.5, "edits": 60, "jobs": 0, "disturbances": 0},
    ),
    Mutant("the record of shares is made up", _around(canary, "record", _forgets_shares), ("the route says what the record says",), _STEPS),
    Mutant(
        "a share comes before the gate",
        _around(rollout, "_bring", _before_the_gate),
        ("traffic goes to what has passed the gate",),
        {**_STEPS, "gates": 0.9},
    ),
    Mutant(
        "the Gateway API is taken for granted",
        _set(Routes, "_is_installed", _as_if_there),
        ("only kinds that the cluster has are asked for",),
        {**_STEPS, "late_gateway": 1.0},
    ),
)
