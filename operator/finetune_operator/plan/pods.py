"""What the pods of an endpoint's version say of it: that they crash, or why they do not answer yet."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from finetune_operator import names
from finetune_operator.observe import PodView
from finetune_operator.reasons import Reason

from .faults import Fault, failure, waiting

if TYPE_CHECKING:
    from .rollout import Rollout


def crashes(pods: Iterable[PodView], *, restarts: int) -> Fault | None:
    """Pods that ended by themselves again and again. That storage is down is not their fault: they try until it is back, or the time is over."""
    for pod in pods:
        fault = waiting(pod)
        if pod.restarts >= restarts and fault and fault.reason == Reason.CRASH_LOOP and failure(pod.ended, "").counts:
            return Fault(Reason.CRASH_LOOP, f"pod {pod.name}: {fault.message}")
    return None


def crashed(pods: Iterable[PodView]) -> Fault | None:
    """A pod that ended by itself, once."""
    found = next((p for p in pods if p.restarts and p.ended and p.ended.exit_code and not p.disruption and failure(p.ended, "").counts), None)
    return Fault(Reason.CRASH_LOOP, f"pod {found.name}: {failure(found.ended, '').message}") if found else None


def why(rollout: "Rollout", version: str) -> Fault:
    """What holds a version up, from the newest of its pods that something holds up, else from the newest, or from its Deployment where that lacks some."""
    view = rollout.deployment(version)
    pod = max(rollout.pods(version), key=lambda p: (not p.deleting, waiting(p) is not None, p.created_at, p.name), default=None)
    fault = waiting(pod) if pod else None
    if fault is None and view and view.refusal and (pod is None or pod.ready):
        cure = "it goes on by itself once that lets them in"
        return Fault(Reason.POD_NOT_CREATED, f"version {version}: {view.replicas - view.ready} of {view.replicas} pods are not made: {view.refusal}; {cure}")
    if pod is None:
        return Fault(Reason.STARTING, f"version {version}: waiting for its pods to be created")
    if fault:
        fetch = pod.ended and pod.ended.container == names.FETCH_CONTAINER and pod.ended.exit_code
        return Fault(Reason.FETCH_FAILED if fetch else fault.reason, f"version {version}, pod {pod.name}: {fault.message}")
    state = "loads the model" if pod.running else "fetches the model and the adapter"
    if pod.restarts and pod.ended and pod.ended.exit_code:
        state += f" again: {failure(pod.ended, '').message}"
    return Fault(Reason.ROLLING_OUT, f"version {version}: pod {pod.name} {state}")
