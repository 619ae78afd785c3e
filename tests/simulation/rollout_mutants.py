"""Operators that are wrong on purpose about endpoints."""

from dataclasses import replace
from typing import Any

from finetune_operator import names
from finetune_operator.build import evaluation
from finetune_operator.plan import choice, endpoint, gate, live, pods, recreate, rollout, versions
from finetune_operator.plan.errand import Stand
from finetune_operator.plan.faults import Fault
from finetune_operator.plan.gate import Gate, Verdict
from finetune_operator.plan.merge import Merge
from finetune_operator.plan.types import Ref
from finetune_operator.reasons import Reason

from .merging import merged_of
from .mutants import Mutant, _all, _around, _set
from .watches import WATCHED


def _whatever_gate(right: Any, target: Any, record: Any) -> Any:
    gates = {question.served: question.gate for question in target.questions}
    others = [other.model_copy(update={"gate": gates.get(other.name or "", other.gate)}) for other in record.others or ()]
    return right(target, record.model_copy(update={"gate": gates.get(record.served_name or "", record.gate), "others": others}))


def _makes_room(right: Any, looked: Any, version: Any, *args: Any) -> Any:
    return 0 if version.role == "Current" and looked.versions.having("Candidate") else right(looked, version, *args)


def _for_nobody(looked: Any) -> bool:
    return looked.seen.spec.strategy.type == "Recreate" and bool(looked.versions.having("Candidate"))


def _with_itself(right: Any, owner: Any, spec: Any, gates: Any, adapter: Any, version: Any, current: Any, *args: Any) -> Any:
    return right(owner, spec, gates, adapter, version, current and version, *args)


def _keeps_none(right: Any, looked: Any) -> None:
    right(replace(looked, seen=replace(looked.seen, spec=looked.seen.spec.model_copy(update={"keep_previous": 0}))))


def _side_by_side(right: Any, looked: Any, *args: Any) -> Any:
    over = tuple(j for j in looked.seen.jobs if j.complete or j.failed)
    return right(replace(looked, seen=replace(looked.seen, jobs=over)), *args)


def _keeps_all(right: Any, *args: Any) -> Any:
    return replace(right(*args), delete=())


def _without_service(right: Any, looked: Any, *args: Any) -> Any:
    plan, name = right(looked, *args), looked.seen.owner.name
    return replace(plan, apply=tuple(b for b in plan.apply if (b["kind"], b["metadata"]["name"]) != ("Service", name)))


def _patient(right: Any, looked: Any, candidate: Any, target: Any) -> None:
    right(replace(looked, seen=replace(looked.seen, spec=looked.seen.spec.model_copy(update={"auto_rollback": False}))), candidate, target)
    looked.wait(pods.why(looked, candidate.name))


def _alone(right: Any, version: Any) -> Any:
    return dict(list(right(version).items())[:1])


def _skips(right: Any, self: Any, version: Any, role: str, *args: Any, **fields: Any) -> Any:
    return right(self, version, "Retired" if role == "Previous" else role, *args, **fields)


def _at_once(_: Any, version: Any, __: float) -> Merge:
    return Merge(Stand.DONE, Fault(Reason.MERGING, ""), merged_of(version.adapter.manifest_sha256))


def _with_candidate(right: Any, name: str, spec: Any, *args: Any) -> Any:
    host = right(name, spec, *args)
    return f"{host[:-3]}{names.digest(spec.candidate.adapter.uri)[:3]}" if host and spec.candidate else host


def _with_its_host(right: Any, looked: Any, *args: Any) -> Any:
    plan = right(looked, *args)
    past = (v for v in looked.versions.having("Rejected", "Retired") if v.host)
    return replace(plan, delete=(*plan.delete, *(Ref("apps/v1", "Deployment", v.place) for v in past)))


# Only people and bad versions: then it is known how soon an operator reacts.
_FINE = dict.fromkeys(("storm", "crash", "error", "stall", "lost_watch", "skew", "latency"), 0.0)
_BUSY = {"endpoints": True, "edits": 20, "window": 1500.0, "names": 0.0}
_GATED = {**_BUSY, **_FINE, "edits": 24, "window": 2300.0, "gates": 0.9, "bad_versions": 0.0, "pod_failure": 0.0, "jobs": 0}
_MERGED = {**_BUSY, **_FINE, "merged": True, "gates": 0.0, "bad_versions": 0.0, "pod_failure": 0.0, "jobs": 0}
_ROLLING = {**_BUSY, "gates": 0.0, "bad_versions": 0.0}
_CRASHING = {**_BUSY, **_FINE, "lags": dict.fromkeys(WATCHED, 0.1), "gates": 0.0, "bad_versions": 0.5, "jobs": 0, "disturbances": 0}

_NAMED = {**_ROLLING, "names": 0.7}
_LIVE = {**_BUSY, "live": True, "canary": 0.0, "merged": False, "gates": 0.0, "bad_versions": 0.2}
_LIVE_GATED = {**_GATED, "live": True, "canary": 0.0}
_HOST = (_around(endpoint, "host_of", _with_candidate), _around(choice, "host_of", _with_candidate))

_YESTERDAY = ("traffic goes to what has passed the gate", "every rollout ends or says what it waits for")

ROLLOUT_MUTANTS = (
    Mutant("traffic moves at once", _set(rollout, "_is_up", lambda *_: True), ("traffic goes to what has answered",), _ROLLING),
    Mutant("every gate is open", _set(rollout, "recorded", lambda *_: Verdict(Gate.OPEN)), ("traffic goes to what has passed the gate",), _GATED),
    Mutant("the gate of yesterday counts", _around(rollout, "recorded", _whatever_gate), _YESTERDAY, _GATED),
    Mutant("the old version makes room first", _around(endpoint, "_replicas", _makes_room), ("an endpoint keeps answering",), _ROLLING),
    Mutant("it does so for nobody", _set(recreate, "makes_room", _for_nobody), ("pods make room for others only",), _ROLLING),
    Mutant("previous versions go at once", _around(endpoint, "retire", _keeps_none), ("rollback stays possible",), _ROLLING),
    Mutant("two gates ask at a time", _around(endpoint, "_evaluation", _side_by_side), ("one evaluation at a time",), _GATED),
    Mutant("what has passed is asked again", _set(gate, "_known", lambda *_: None), ("a passed evaluation counts",), _GATED),
    Mutant("a version is compared with itself", _around(evaluation, "evaluate_config", _with_itself), ("a comparison is with what users get",), _GATED),
    Mutant("what is given up keeps its pods", _around(endpoint, "_plan", _keeps_all), ("nothing is left of versions that went",), _ROLLING),
    Mutant("nothing is ever given up", _around(rollout, "_starting", _patient), ("every rollout ends or says what it waits for",), {**_BUSY, "bad_versions": 0.6}),
    Mutant("a version is forgotten when the next one comes", _around(versions.Versions, "move", _skips), ("roles change along their ways",), _ROLLING),
    Mutant("nobody waits for the merge", _set(rollout, "merge", _at_once), ("a merged version serves what was merged of its adapter",), _MERGED),
    Mutant("what is merged is forgotten", _set(rollout, "is_missing", lambda spec, _: spec.quantization == "Merged"), ("a merged adapter counts",), _MERGED),
    Mutant("nobody watches", _set(endpoint, "watch", lambda *_: None), ("a crash soon after the switch gives the traffic back",), _CRASHING),
    Mutant("a new name takes the place of all others", _around(choice, "served", _alone), ("an adapter is served until a user takes it away",), _NAMED),
    Mutant("all proposals have one manager", _set(names, "candidate_manager", lambda _: "one"), ("a proposal leaves the others alone",), {**_NAMED, "jobs": 2}),
    Mutant("users get what is not loaded yet", _set(live, "lacks", lambda *_: None), ("users get what all pods have loaded",), _LIVE),
    Mutant("live adapters pass every gate", _set(rollout, "recorded", lambda *_: Verdict(Gate.OPEN)), ("traffic goes to what has passed the gate",), _LIVE_GATED),
    Mutant("each live adapter has pods of its own", _all(*_HOST), ("live adapters need no other pods",), _LIVE),
    Mutant("a host goes with one of its versions", _around(endpoint, "_plan", _with_its_host), ("a host stays while a version is in it",), _LIVE),
    Mutant("the record is ahead of the traffic", _around(endpoint, "_plan", _without_service), ("the record is true",), _ROLLING),
)  # fmt: skip
