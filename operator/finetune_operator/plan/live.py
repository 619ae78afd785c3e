"""Versions that share a Deployment, its host, because they differ in adapters only: which of them users get there, and what its pods say of it.

A host serves the adapters of one version under the names that users ask: it is public. Those of a candidate are loaded beside, under names that
nobody asks, until its gate is open; then it becomes public, and gets the traffic on record when every pod that answers has it. So the way back
is one write as well. What the pods of a host are told can be written only while today's spec makes this host.
"""

from typing import TYPE_CHECKING

from finetune_operator import clock, names
from finetune_operator.api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus, VersionStatus
from finetune_operator.build import config as build_config
from finetune_operator.observe import PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.config import ADAPTERS_PORT, AdapterState, Live, NamedAdapter

from .adapters import served
from .faults import Fault, failure, waiting
from .types import Body, Ref
from .versions import WITH_PODS

if TYPE_CHECKING:
    from .rollout import Rollout

LOOK_SECONDS = 2.0  # between two looks at pods that are to load something


def asks(status: ModelEndpointStatus) -> str:
    """Host whose pods have to be asked what they serve; empty: none. Nobody is asked unless something is on its way."""
    return next((v.host for v in status.versions if v.role == "Candidate" and v.host), "")


# Who is public


def public(rollout: "Rollout", place: str) -> VersionStatus | None:
    """The version whose adapters the pods of a host serve to users."""
    return next((v for v in _there(rollout, place) if v.public), None)


def shown(rollout: "Rollout", place: str) -> VersionStatus | None:
    """The version whose adapters have the names that users ask in the pods of a host. Where none is public nobody asks, and a candidate has them."""
    return public(rollout, place) or next(iter(_there(rollout, place)), None)


def _there(rollout: "Rollout", place: str) -> list[VersionStatus]:
    return [v for v in rollout.versions.having(*WITH_PODS) if v.host == place]


def appoint(rollout: "Rollout", version: VersionStatus) -> None:
    """Make a version the public one of its host; the time counts from now."""
    for other in _there(rollout, version.place):
        if other.name != version.name and other.public:
            rollout.versions.put(other.model_copy(update={"public": None}))
    rollout.versions.again(version, public=True)


def settle(rollout: "Rollout") -> None:
    """Where the public version of a host went, the one that had the traffic last is it. Hosts of older specs cannot be told anything any more."""
    for version in rollout.versions.having("Rejected", "Retired"):
        if version.public:
            rollout.versions.put(version.model_copy(update={"public": None}))
    for place in {v.host for v in rollout.versions.having(*WITH_PODS) if v.host}:
        there = [v for v in _there(rollout, place) if v.role != "Candidate"]
        if public(rollout, place) or not there:
            continue
        last = next((v for v in there if v.role == "Current"), there[0])
        if place == rollout.host or last.role == "Current":
            rollout.versions.put(last.model_copy(update={"public": True}))
            continue
        for version in there:  # nobody knows what its pods serve: they are no way back
            rollout.versions.move(version, "Retired", served=True)


def is_there(rollout: "Rollout", version: VersionStatus) -> bool:
    """Whether a version can be taken as it is: it has a Deployment that serves it, or one that can be told to."""
    return rollout.deployment(version.name) is not None and (version.host in (None, rollout.host) or bool(version.public))


def stands(rollout: "Rollout", candidate: VersionStatus) -> bool:
    """Whether a candidate that is not wanted any more has the traffic: it is public in pods with traffic, which cannot be told otherwise any more."""
    return bool(candidate.public) and shares(candidate, rollout.versions.current) and candidate.host != rollout.host


def may_have(rollout: "Rollout", candidate: VersionStatus) -> bool:
    """Whether it may have the traffic, by a round that ended before that was on record: then what comes after it is tried in its pods, or in others."""
    return bool(candidate.public) and not shares(candidate, rollout.versions.current)


def shares(one: VersionStatus, other: VersionStatus | None) -> bool:
    """Whether two versions are in the same pods."""
    return other is not None and one.host is not None and one.host == other.host


# What pods are told


def asked_as(rollout: "Rollout", version: VersionStatus, name: str) -> str:
    """Name in the OpenAI API under which an adapter of a version is asked; `name`: empty, the endpoint's own. Names that users choose have no #."""
    own = name or build_config.own_name(rollout.seen.owner.name, rollout.seen.spec, version)
    other = shown(rollout, version.host) if version.host else None
    beside = served(other).get(name) if other else None
    if other is None or (beside and beside.adapter == served(version)[name].adapter):
        return own
    return f"{own}#{version.name}"


def told(rollout: "Rollout", spec: ModelEndpointSpec, version: VersionStatus) -> Live:
    """What the pods of a host need to know besides the adapters that they serve to users."""
    trial = [
        NamedAdapter(name=asked, adapter=adapter.adapter)
        for candidate in rollout.versions.having("Candidate")
        if shares(candidate, version)
        for name, adapter in served(candidate).items()
        if "#" in (asked := asked_as(rollout, candidate, name))
    ]
    return Live(max_adapters=spec.max_adapters, max_lora_rank=spec.max_lora_rank, trial=trial or None)


def nudges(rollout: "Rollout", place: str, content: str) -> list[tuple[Ref, Body]]:
    """A note on each pod of a host of what it is told: the kubelet then looks at once, where it would take up to a minute or two by itself."""
    note = names.digest(content)
    told_otherwise = (p for p in rollout.seen.pods if p.parent == place and p.alive and not p.deleting and p.told != note)
    return [(Ref("v1", "Pod", p.name), {"metadata": {"annotations": {names.ANNOTATION_TOLD: note}}}) for p in told_otherwise]


# What pods say


def lacks(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """Why a candidate is not served by every pod of its host that answers; None when it is. FetchFailed: it never will be."""
    wanted = _wanted(rollout, candidate)
    pods = sorted((p for p in rollout.pods(candidate.name) if p.ready and not p.deleting), key=lambda p: p.name)
    if not pods:
        return Fault(Reason.ROLLING_OUT, f"version {candidate.name}: no pod answers that could load it")
    faults = [fault for pod in pods if (fault := _lacks(rollout, candidate, pod, wanted))]
    refused = next((fault for fault in faults if fault.reason == Reason.FETCH_FAILED), None)
    return refused or next(iter(faults), None)


def refused(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """Why a pod that serves nobody yet will not serve a candidate; None when none says so."""
    wanted = _wanted(rollout, candidate) if candidate.host else {}
    for pod in sorted(rollout.pods(candidate.name), key=lambda p: p.name):
        report = None if pod.deleting else rollout.seen.reports.get(pod.uid)
        for state in report.adapters if report else ():
            if state.state == "Refused" and wanted.get(state.name) == state.manifest_sha256:
                return _cannot(candidate, pod, state)
    return None


def _wanted(rollout: "Rollout", candidate: VersionStatus) -> dict[str, str]:
    """Digests of a candidate's adapters by the names under which they are asked."""
    return {asked_as(rollout, candidate, name): adapter.adapter.manifest_sha256 for name, adapter in served(candidate).items()}


def _cannot(candidate: VersionStatus, pod: PodView, state: AdapterState) -> Fault:
    return Fault(Reason.FETCH_FAILED, f"version {candidate.name}: pod {pod.name} cannot serve {state.name}: {state.message}")


def _lacks(rollout: "Rollout", candidate: VersionStatus, pod: PodView, wanted: dict[str, str]) -> Fault | None:
    report = rollout.seen.reports.get(pod.uid)
    if report is None:
        # Questions of a gate keep a pod busy, and are not asked anew because it was slow to say what it said before.
        asking = not candidate.public and any(j.owner_uid == rollout.seen.owner.uid and not j.deleting for j in rollout.seen.jobs)
        silent = f"pod {pod.name} does not say what it serves (port {ADAPTERS_PORT}, which a NetworkPolicy may close)"
        return None if asking else Fault(Reason.ROLLING_OUT, f"version {candidate.name}: {silent}")
    known = {(state.name, state.manifest_sha256): state for state in report.adapters}
    for name, digest in wanted.items():
        state = known.get((name, digest)) or AdapterState(name=name, manifest_sha256=digest, state="Waiting", message="it has not been told yet")
        if state.state == "Refused":
            return _cannot(candidate, pod, state)
        if state.state == "Waiting":
            return Fault(Reason.ROLLING_OUT, f"version {candidate.name}: pod {pod.name} loads {name}: {state.message}")
    return None


def since(candidate: VersionStatus, pods: list[PodView]) -> list[PodView]:
    """Pods whose last end may be this candidate's fault: others have been in those of its host before."""
    if candidate.host is None:
        return pods
    begun = clock.seconds(candidate.since)
    return [p for p in pods if p.ended is None or (p.ended.finished_at and clock.seconds(p.ended.finished_at) >= begun)]


def crashed(version: VersionStatus, pods: list[PodView], *, alone: bool) -> Fault | None:
    """A pod of a host that crashed after it was told to serve another version: again and again, or once where no pod answers (`alone`)."""
    for pod in since(version, pods):
        if pod.ended is None or not pod.ended.exit_code or pod.disruption or pod.deleting or not pod.restarts or not failure(pod.ended, "").counts:
            continue
        fault = waiting(pod)
        if alone or (fault and fault.reason == Reason.CRASH_LOOP):
            return Fault(Reason.CRASH_LOOP, f"pod {pod.name}: {failure(pod.ended, '').message}")
    return None


def judge(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """What speaks against a candidate that comes into pods which serve another version; None when nothing does."""
    if candidate.host is None:
        return None
    if (fault := lacks(rollout, candidate)) and fault.reason == Reason.FETCH_FAILED:
        return fault
    if not any(shares(other, candidate) for other in rollout.versions.having("Current", "Previous")):
        return None
    view = rollout.deployment(candidate.name)
    crash = crashed(candidate, rollout.pods(candidate.name), alone=view is not None and not view.ready)
    return Fault(crash.reason, f"version {candidate.name} was loaded into pods that crashed: {crash.message}") if crash else None
