"""The adapter becomes part of its base before the candidate's pods start: where the Kubernetes Job that merges stands, and what is needed for it."""

from dataclasses import dataclass
from enum import Enum, auto

from finetune_operator import clock, names
from finetune_operator.api.modelendpoint import ModelEndpointSpec, VersionStatus
from finetune_operator.build import merge as build_merge
from finetune_operator.observe import JobView, PodView
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import AdapterRef

from .faults import Fault, ending, result, waiting
from .step import RESULT_PATIENCE
from .types import Body, EndpointState


class Stand(Enum):
    """Where a merge stands."""

    START = auto()  # the Job has to be made
    WAIT = auto()  # it is under way
    AGAIN = auto()  # its result is lost: the Job has to go, then it is made again and finds what was committed
    DONE = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Merge:
    """Where a merge stands, why, and what came of it."""

    stand: Stand
    fault: Fault
    merged: AdapterRef | None = None


def is_missing(spec: ModelEndpointSpec, version: VersionStatus) -> bool:
    """Whether a version that today's spec makes cannot be served yet, because its adapter is not merged."""
    return spec.quantization == "Merged" and version.merged is None


def merge(seen: EndpointState, version: VersionStatus, now: float) -> Merge:
    """Where the merge of a version stands. Only a result that names what was committed ends it well."""
    name = names.merge_job(seen.owner.name, version.name)
    job = next((j for j in seen.jobs if j.name == name and j.owner_uid == seen.owner.uid), None)
    older = next((p for p in seen.pods if p.step == names.MERGE and p.alive and (job is None or job.deleting or p.parent != job.name)), None)
    if older or (job and job.deleting):
        return Merge(Stand.WAIT, _on_its_way(version, ending(older) if older else "an older merge is ending"))
    if job is None:
        return Merge(Stand.START, _on_its_way(version, "its adapter is to be merged into the base model"))
    return _stand(job, [p for p in seen.pods if p.parent == job.name], version, now)


def _stand(job: JobView, pods: list[PodView], version: VersionStatus, now: float) -> Merge:
    for ended in (p.ended for p in pods):
        found = result(ended)
        if ended and ended.exit_code == 0 and found and found.merged:
            return Merge(Stand.DONE, _on_its_way(version, "its adapter is merged into the base model"), found.merged)
    if job.failed:
        told = next((t for p in pods if (t := result(p.ended))), None)
        message = f"version {version.name} cannot be served: its adapter could not be merged into the base model: {told.message if told else job.failure}"
        return Merge(Stand.FAILED, Fault(Reason.MERGE_FAILED, message))
    if job.complete:
        left = clock.seconds(job.finished_at) + RESULT_PATIENCE - now if job.finished_at else 0.0
        return Merge(Stand.WAIT if left > 0 else Stand.AGAIN, _on_its_way(version, "waiting for the result of the merge"))
    pod = max((p for p in pods if p.alive), key=lambda p: (p.created_at, p.name), default=None)
    if pod and (fault := waiting(pod)):
        return Merge(Stand.WAIT, Fault(fault.reason, f"version {version.name}, merge pod {pod.name}: {fault.message}"))
    return Merge(Stand.WAIT, _on_its_way(version, f"pod {pod.name} merges its adapter into the base model" if pod else "waiting for the pod that merges"))


def _on_its_way(version: VersionStatus, what: str) -> Fault:
    return Fault(Reason.MERGING, f"version {version.name}: {what}")


def merge_body(seen: EndpointState, version: VersionStatus, settings: Settings) -> Body:
    """The Job of a version's merge."""
    return build_merge.merge_job(seen.owner, seen.spec, settings, names.merge_job(seen.owner.name, version.name), version.adapter)
