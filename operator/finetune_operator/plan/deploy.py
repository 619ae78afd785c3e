"""Last step of a FineTuneJob: proposing its adapter to an endpoint. Only the endpoint's own plan moves traffic."""

from dataclasses import dataclass, replace

from finetune_operator.api.jobstatus import EndpointStatus, FineTuneJobStatus
from finetune_operator.api.meta import Status
from finetune_operator.build.endpoint import candidate, endpoint, endpoint_name, proposal
from finetune_operator.build.serving import url
from finetune_operator.reasons import Reason

from .types import Body, JobState

_WELL = (Reason.STARTING, Reason.ROLLING_OUT)


@dataclass(frozen=True, slots=True)
class Deploy:
    """What deployment needs and where it stands."""

    required: bool
    ready: Status = "Unknown"
    reason: str = ""
    message: str = ""
    create: tuple[Body, ...] = ()
    propose: tuple[Body, ...] = ()
    endpoint: EndpointStatus | None = None


def deploy(seen: JobState, status: FineTuneJobStatus) -> Deploy:
    """Propose the committed adapter, then wait until the endpoint serves it."""
    inference, artifact = seen.spec.inference, status.artifact
    if inference is None or artifact is None:
        return Deploy(required=False)
    name = endpoint_name(seen.owner, inference)
    told = seen.endpoint.status.url if seen.endpoint else ""
    shown = EndpointStatus(name=name, url=told or url(name, seen.owner.namespace))
    under_way = Deploy(True, "Unknown", Reason.WAITING_FOR_ENDPOINT, f"ModelEndpoint {name} is taking up this version", endpoint=shown)
    if seen.endpoint is None:
        return replace(under_way, create=(endpoint(seen.owner, seen.spec, inference, artifact),))
    if seen.endpoint.owner_uid not in ("", seen.owner.uid):
        message = f"ModelEndpoint {name} belongs to another object and is deleted with it: name another endpoint in a new job"
        return Deploy(True, "False", Reason.NAME_CONFLICT, message, endpoint=shown)
    proposed = seen.endpoint.spec.candidate
    if proposed is None or proposed.job_uid != seen.owner.uid:
        if seen.endpoint.spec.model.source != seen.spec.model.source:
            message = (
                f"ModelEndpoint {name} serves base model {seen.endpoint.spec.model.source}, but this adapter belongs to {seen.spec.model.source}: "
                "name another endpoint in a new job, or change the endpoint's spec.model"
            )
            return Deploy(True, "False", Reason.WAITING_FOR_ENDPOINT, message, endpoint=shown)
        return replace(under_way, propose=(proposal(seen.owner.namespace, name, candidate(seen.owner, artifact)),))
    current = seen.endpoint.status.current()
    if current and current.job_uid == seen.owner.uid:
        return Deploy(True, "True", Reason.DEPLOYED, f"ModelEndpoint {name} serves this adapter at {shown.url}", endpoint=shown)
    # What the endpoint says of itself counts where something holds it up; how it gets on is its own story.
    held = next((c for c in seen.endpoint.status.conditions if c.type == "Progressing" and c.status == "True" and c.reason not in _WELL), None)
    return replace(under_way, reason=held.reason, message=held.message) if held else under_way
