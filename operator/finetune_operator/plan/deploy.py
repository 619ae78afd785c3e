"""Last step of a FineTuneJob: proposing its adapter to an endpoint. Only the endpoint's own plan moves traffic."""

from dataclasses import dataclass

from finetune_operator.api.jobstatus import EndpointStatus, FineTuneJobStatus
from finetune_operator.api.meta import Status
from finetune_operator.build.endpoint import candidate, endpoint, endpoint_name, proposal
from finetune_operator.reasons import Reason

from .types import Body, JobState


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
    if seen.endpoint is None:
        body = endpoint(seen.owner, seen.spec, inference, artifact)
        return Deploy(
            True, "Unknown", Reason.WAITING_FOR_ENDPOINT, f"ModelEndpoint {name} is being created", create=(body,), endpoint=EndpointStatus(name=name)
        )
    shown = EndpointStatus(name=name, url=seen.endpoint.status.url)
    proposed = seen.endpoint.spec.candidate
    if proposed is None or proposed.job_uid != seen.owner.uid:
        if seen.endpoint.spec.model.source != seen.spec.model.source:
            message = (
                f"ModelEndpoint {name} serves base model {seen.endpoint.spec.model.source}, but this adapter belongs to {seen.spec.model.source}: "
                "name another endpoint in a new job, or change the endpoint's spec.model"
            )
            return Deploy(True, "False", Reason.WAITING_FOR_ENDPOINT, message, endpoint=shown)
        body = proposal(seen.owner.namespace, name, candidate(seen.owner, artifact))
        return Deploy(True, "Unknown", Reason.WAITING_FOR_ENDPOINT, f"proposing the adapter to ModelEndpoint {name}", propose=(body,), endpoint=shown)
    current = seen.endpoint.status.current()
    if current and current.job_uid == seen.owner.uid:
        return Deploy(True, "True", Reason.DEPLOYED, f"ModelEndpoint {name} serves this adapter at {shown.url}", endpoint=shown)
    # What the endpoint says of itself counts once it has seen the proposal and is on its way.
    progressing = next((c for c in seen.endpoint.status.conditions if c.type == "Progressing" and c.status == "True"), None)
    reason = progressing.reason if progressing else Reason.WAITING_FOR_ENDPOINT
    message = progressing.message if progressing else f"ModelEndpoint {name} is taking up this version"
    return Deploy(True, "Unknown", reason, message, endpoint=shown)
