"""A new version gets its share of the requests through a Gateway in steps: ready, then weight, then everything.

The step that a candidate has reached is in the record of versions; the weights of the HTTPRoute follow from it in every round, so that an operator
that starts anew goes on where the last one was, and one write moves traffic. The endpoint's Service knows no shares: it moves when the steps are over.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from finetune_operator import clock, names
from finetune_operator.api.meta import ConditionType
from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.api.serving import Canary
from finetune_operator.build import route as build_route
from finetune_operator.build import serving
from finetune_operator.observe import PodView
from finetune_operator.reasons import Reason

from .faults import Fault, failure, waiting
from .status import Conditions
from .types import Body, EndpointState, Ref

if TYPE_CHECKING:
    from .rollout import Rollout

EVERYTHING = 100  # percent
_CURE = "or set spec.strategy.type to BlueGreen and remove spec.strategy.canary"


def asked(seen: EndpointState) -> Canary | None:
    """Steps and Gateway, where the strategy is Canary."""
    return seen.spec.strategy.canary if seen.spec.strategy.type == "Canary" else None


def answers(rollout: "Rollout", version: VersionStatus) -> bool:
    """Whether a pod of a version answers."""
    view = rollout.deployment(version.name)
    return view is not None and view.ready > 0


# What holds it up


def route_fault(seen: EndpointState) -> Fault | None:
    """Why weights would move nobody; None when a Gateway goes by them."""
    canary, route = asked(seen), seen.route
    wanted = ", ".join(f"{ref.namespace or seen.owner.namespace}/{ref.name}" for ref in canary.parent_refs) if canary else ""
    if not seen.gateway_api:
        missing = f"the cluster has no HTTPRoutes ({names.GATEWAY_API}): install the Gateway API's CustomResourceDefinitions and a Gateway, {_CURE}"
        return Fault(Reason.GATEWAY_API_MISSING, missing)
    if seen.route_fault:
        return Fault(seen.route_fault.reason, f"{seen.route_fault.message}, {_CURE}")
    if route and route.refusal:
        return Fault(Reason.ROUTE_REFUSED, f"HTTPRoute {seen.owner.name} is refused: {route.refusal}. Correct the Gateway or spec.strategy.canary, {_CURE}")
    if route is None or not route.accepted:
        nobody = f"no controller has accepted HTTPRoute {seen.owner.name} yet: see that Gateway {wanted} exists and that a controller serves its class"
        return Fault(Reason.STARTING, nobody)
    return None


def unfit(pods: Iterable[PodView], since: float) -> Fault | None:
    """A pod of a version with a share that crashed or ceased to answer; `since` (seconds) is when it got the share.

    Pods that are taken away, and those that come in their place and start, say nothing about the version.
    """
    for pod in pods:
        if pod.ready or pod.deleting or pod.disruption:
            continue
        loops = waiting(pod)
        old = clock.seconds(pod.created_at) < since
        if pod.restarts and pod.ended and pod.ended.exit_code and (old or (loops and loops.reason == Reason.CRASH_LOOP)):
            return Fault(Reason.CRASH_LOOP, f"pod {pod.name}: {failure(pod.ended, '').message}")
        if old:
            return Fault(Reason.LOST_READINESS, f"pod {pod.name} has ceased to answer: look at its log")
    return None


# Steps


def by_steps(rollout: "Rollout") -> bool:
    """Whether a candidate gets the traffic in steps. The way back has none: whoever names a version in spec.version has decided."""
    spec = rollout.seen.spec
    return asked(rollout.seen) is not None and rollout.versions.current is not None and spec.replicas > 0 and spec.version is None


def judge(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """What speaks against a candidate that has a share; None when nothing does, or it has none."""
    if not candidate.step or not candidate.step_since or asked(rollout.seen) is None:
        return None
    found = unfit(rollout.pods(candidate.name), clock.seconds(candidate.step_since))
    return (
        Fault(found.reason, f"version {candidate.name} had {candidate.step} % of the requests through the Gateway and lost them: {found.message}")
        if found
        else None
    )


def keep(rollout: "Rollout", candidate: VersionStatus, *, passes: bool) -> VersionStatus:
    """The candidate with the share that it may keep: none without a pod that answers, an open gate and a strategy with shares."""
    if candidate.step is None:
        return candidate
    if asked(rollout.seen) is None:
        return rollout.versions.put(candidate.model_copy(update={"step": None, "step_since": None}))
    if candidate.step and not (passes and answers(rollout, candidate)):
        return _reach(rollout, candidate, 0)
    return candidate


def _reach(rollout: "Rollout", candidate: VersionStatus, step: int, **passed: Any) -> VersionStatus:
    return rollout.versions.put(candidate.model_copy(update={"step": step, "step_since": clock.text(rollout.now), **passed}))


def advance(rollout: "Rollout", candidate: VersionStatus, **passed: Any) -> bool:
    """Take the step that is due. True: the candidate gets everything. `passed`: its evaluation, for the record.

    All its pods answer.
    """
    canary = asked(rollout.seen)
    if canary is None or not by_steps(rollout):
        return True
    step = candidate.step or 0
    if fault := route_fault(rollout.seen):
        rollout.versions.put(candidate.model_copy(update=passed))
        rollout.wait(Fault(fault.reason, f"version {candidate.name} is ready and stands by with {step} % of the requests: {fault.message}"))
        rollout.look_in(30.0 if rollout.seen.route_fault else None)
        return False
    if step and candidate.step_since and (left := clock.seconds(candidate.step_since) + canary.step_seconds - rollout.now) > 0:
        rollout.due.append(left)
    else:
        after = _next(canary, step)
        if after == EVERYTHING:
            return True
        candidate, step = _reach(rollout, candidate, after, **passed), after
        rollout.due.append(canary.step_seconds)
    then = clock.text(clock.seconds(candidate.step_since or "") + canary.step_seconds)
    told = f"version {candidate.name} gets {step} % of the requests through the Gateway, and {_next(canary, step)} % from {then} on while its pods answer"
    rollout.wait(Fault(Reason.SHIFTING_TRAFFIC, told))
    return False


def _next(canary: Canary, step: int) -> int:
    return next((s for s in canary.steps if s > step), EVERYTHING)


# What follows from the record


def shares(rollout: "Rollout") -> dict[str, int]:
    """Weights in percent by version; empty while there is no version that has the traffic.

    They are never all 0. Where no pod of the current version answers, a candidate that has a share gets everything as long.
    """
    versions, current = rollout.versions, rollout.versions.current
    if asked(rollout.seen) is None or current is None:
        return {}
    candidate = next((v for v in versions.having("Candidate") if v.step), None)
    step = 0 if candidate is None or candidate.step is None else candidate.step if answers(rollout, current) else EVERYTHING
    found = {current.place: EVERYTHING - step}
    if candidate:
        found[candidate.place] = step
    return {v.place: 0 for v in versions.having("Previous")} | found


def record(rollout: "Rollout") -> None:
    """Say in the record what each version gets."""
    weights = shares(rollout) if rollout.seen.gateway_api else {}
    for version in rollout.versions.having("Current", "Candidate", "Previous"):
        rollout.versions.put(version.model_copy(update={"weight": weights.get(version.place, 0) if weights else None}))


def objects(rollout: "Rollout", made: Iterable[str]) -> tuple[Body, ...]:
    """The HTTPRoute, and the Services that it needs besides those of the versions in `made`."""
    owner, canary, weights = rollout.seen.owner, asked(rollout.seen), shares(rollout)
    if canary is None or not weights or not rollout.seen.gateway_api:
        return ()
    known = set(made)
    missing = (serving.version_service(owner, version) for version in weights if version not in known)
    return (*missing, build_route.route(owner, canary, weights))


def leftovers(rollout: "Rollout") -> tuple[Ref, ...]:
    """The HTTPRoute of a strategy that was, or of a version that went before it was on record that it had the traffic."""
    seen = rollout.seen
    gone = None if shares(rollout) else seen.route
    return (Ref(names.GATEWAY_API, "HTTPRoute", gone.name, gone.uid),) if gone and gone.owner_uid == seen.owner.uid else ()


def state(rollout: "Rollout", conditions: Conditions) -> None:
    """State the condition Routed, which is there with the strategy Canary only."""
    if asked(rollout.seen) is None:
        conditions.drop(ConditionType.ROUTED)
    elif not (fault := route_fault(rollout.seen)):
        conditions.set(ConditionType.ROUTED, "True", Reason.ROUTED, f"HTTPRoute {rollout.seen.owner.name} is accepted")
    elif rollout.versions.current is None and fault.reason == Reason.STARTING:
        conditions.set(ConditionType.ROUTED, "Unknown", Reason.NO_VERSION, "the HTTPRoute is made with the first version that gets traffic")
    else:
        conditions.set(ConditionType.ROUTED, "Unknown" if fault.reason == Reason.STARTING else "False", fault.reason, fault.message)
