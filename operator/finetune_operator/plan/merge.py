"""The adapter becomes part of its base before the candidate's pods start: where the Kubernetes Job that merges stands, and what is needed for it."""

from dataclasses import dataclass

from finetune_operator import names
from finetune_operator.api.modelendpoint import ModelEndpointSpec, VersionStatus
from finetune_operator.build import merge as build_merge
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import AdapterRef

from . import errand
from .errand import Errand, Stand
from .faults import Fault
from .types import Body, EndpointState


@dataclass(frozen=True, slots=True)
class Merge:
    """Where a merge stands, why, and what came of it."""

    stand: Stand
    fault: Fault
    merged: AdapterRef | None = None
    errand: Errand | None = None  # where its Job stands


def is_missing(spec: ModelEndpointSpec, version: VersionStatus) -> bool:
    """Whether a version that today's spec makes cannot be served yet, because its adapter is not merged."""
    return spec.quantization == "Merged" and version.merged is None


def merge(seen: EndpointState, version: VersionStatus, now: float) -> Merge:
    """Where the merge of a version stands. Only a result that names what was committed ends it well; one that is made again finds that."""
    name = names.merge_job(seen.owner.name, version.name)
    job = next((j for j in seen.jobs if j.name == name and j.owner_uid == seen.owner.uid), None)
    found = errand.look(job, seen.pods, names.MERGE, now, what="merge", counts=lambda told: told.merged)
    if found.result and found.result.merged:
        return Merge(Stand.DONE, _on_its_way(version, "its adapter is merged into the base model"), found.result.merged)
    if found.stand is Stand.FAILED:
        message = f"version {version.name} cannot be served: its adapter could not be merged into the base model: {found.message}"
        return Merge(Stand.FAILED, Fault(Reason.MERGE_FAILED, message))
    if found.fault:
        return Merge(found.stand, Fault(found.fault.reason, f"version {version.name}, {found.fault.message}"), errand=found)
    words = "its adapter is to be merged into the base model" if found.stand is Stand.START else f"pod {found.pod} merges its adapter into the base model"
    return Merge(found.stand, _on_its_way(version, found.message or words), errand=found)


def _on_its_way(version: VersionStatus, what: str) -> Fault:
    return Fault(Reason.MERGING, f"version {version.name}: {what}")


def merge_body(seen: EndpointState, version: VersionStatus, settings: Settings) -> Body:
    """The Job of a version's merge."""
    return build_merge.merge_job(seen.owner, seen.spec, settings, names.merge_job(seen.owner.name, version.name), version.adapter)
