"""Last steps of a FineTuneJob: its gate, and proposing its adapter to an endpoint. Only the endpoint's own plan moves traffic."""

from dataclasses import dataclass, replace

from finetune_operator.api.finetunejob import Inference
from finetune_operator.api.jobstatus import ArtifactStatus, EndpointStatus, FineTuneJobStatus
from finetune_operator.api.meta import Status
from finetune_operator.api.modelendpoint import MAX_ADAPTERS, VersionStatus
from finetune_operator.build.endpoint import candidate, endpoint, endpoint_name, proposal
from finetune_operator.build.serving import url
from finetune_operator.reasons import Reason
from finetune_runtime.contract.evaluation import EvaluationResult

from .adapters import of_job, proposals
from .gate import loss_fault
from .types import Body, EndpointView, JobState

# The endpoint gets on by itself; all else that it says of its progress holds it up.
_WELL = (Reason.STARTING, Reason.ROLLING_OUT, Reason.SHIFTING_TRAFFIC)
_LET_THROUGH = "it got the traffic without passing this gate, because the endpoint's spec.version named it; remove spec.version to go by the gate again"
_ROLES = ("Current", "Candidate", "Previous", "Rejected", "Retired")


@dataclass(frozen=True, slots=True)
class Stated:
    """A condition."""

    status: Status
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Deploy:
    """What gate and deployment need and where they stand; None: not asked for."""

    evaluated: Stated | None = None
    deployed: Stated | None = None
    evaluation: EvaluationResult | None = None
    create: tuple[Body, ...] = ()
    propose: tuple[Body, ...] = ()
    endpoint: EndpointStatus | None = None

    @property
    def failed(self) -> Stated | None:
        """What ends the job without success."""
        return next((s for s in (self.evaluated, self.deployed) if s and s.status == "False" and s.reason in _FINAL), None)

    @property
    def done(self) -> bool:
        """Whether all that was asked for has come about."""
        return all(s is None or s.status == "True" for s in (self.evaluated, self.deployed))


_FINAL = (
    Reason.GATE_CLOSED, Reason.EVALUATION_FAILED, Reason.MERGE_FAILED, Reason.FETCH_FAILED, Reason.CRASH_LOOP, Reason.NOT_READY_IN_TIME,
    Reason.LOST_READINESS, Reason.SUPERSEDED, Reason.REFUSED,
)  # fmt: skip


def deploy(seen: JobState, status: FineTuneJobStatus) -> Deploy:
    """Judge the evaluation loss, propose the committed adapter, then wait until the endpoint has decided."""
    artifact, gate = status.artifact, seen.spec.evaluation
    if artifact is None:
        return Deploy()
    if gate and (fault := loss_fault((gate,), artifact.eval_loss)):
        return Deploy(evaluated=Stated("False", Reason.GATE_CLOSED, fault), evaluation=EvaluationResult(passed=False, reasons=[fault]))
    inference = seen.spec.inference
    if inference is None:
        passed = EvaluationResult(passed=True) if gate else None
        return Deploy(evaluated=Stated("True", Reason.GATE_OPEN, "the evaluation loss is within its bound") if gate else None, evaluation=passed)
    if seen.endpoint_fault:
        message = f"{seen.endpoint_fault}: correct it, or install the operator's version that its CustomResourceDefinition belongs to"
        return Deploy(deployed=Stated("False", Reason.WAITING_FOR_ENDPOINT, message), evaluation=status.evaluation, endpoint=status.endpoint)
    return _through_endpoint(seen, status, artifact, inference)


def _through_endpoint(seen: JobState, status: FineTuneJobStatus, artifact: ArtifactStatus, inference: Inference) -> Deploy:
    name, owner, gated = endpoint_name(seen.owner, inference), seen.owner, seen.spec.evaluation is not None
    told = seen.endpoint.status.url if seen.endpoint else ""
    proposed = bool(status.endpoint and status.endpoint.proposed)
    own = ("", (seen.endpoint.spec.served_name if seen.endpoint else "") or name)
    served_name = inference.served_name if seen.endpoint and inference.served_name not in own else ""
    shown = EndpointStatus(name=name, url=told or url(name, owner.namespace), served_name=served_name or None, proposed=proposed or None)
    taking_up = Stated("Unknown", Reason.WAITING_FOR_ENDPOINT, f"ModelEndpoint {name} is taking up this version")
    under_way = Deploy(taking_up if gated else None, taking_up, status.evaluation, endpoint=shown)
    told_now = shown.model_copy(update={"proposed": True})
    if seen.endpoint is None:
        # One of that name may be made by another job in this very moment: then it has to be told what it serves next.
        if not inference.endpoint:
            under_way = replace(under_way, endpoint=told_now)
        return replace(under_way, create=(endpoint(owner, seen.spec, inference, artifact, status.model),))
    if seen.endpoint.owner_uid not in ("", owner.uid):
        return replace(under_way, deployed=Stated("False", Reason.NAME_CONFLICT, _belongs_to_another(name)))
    found = proposals(seen.endpoint.spec)
    standing = next((known for known in found.values() if known.job_uid == owner.uid), found.get(served_name))
    mine = min(of_job(seen.endpoint.status.versions, owner.uid), key=lambda v: _ROLES.index(v.role), default=None)
    if standing and standing.job_uid == owner.uid:
        shown = told_now
        if mine and mine.role == "Retired" and not mine.trusted:  # it had to stand back, and its turn will come
            mine = None
    elif not (proposed or mine):
        if message := _refusal(seen, seen.endpoint, name, served_name):
            return replace(under_way, deployed=Stated("False", Reason.WAITING_FOR_ENDPOINT, message))
        version = candidate(owner, seen.spec, artifact, status.model)
        return replace(under_way, endpoint=told_now, propose=(proposal(owner.namespace, name, version, served_name),))
    elif mine is None:
        return replace(under_way, deployed=_superseded(name, standing.job if standing else ""))
    if mine and mine.role != "Candidate":  # its way there is the endpoint's story, and no news of the job
        shown = shown.model_copy(update={"version": mine.name})
    return _told(_decided(replace(under_way, endpoint=shown), seen.endpoint, mine, name, standing.job if standing else ""))


def _refusal(seen: JobState, endpoint: EndpointView, name: str, served_name: str) -> str:
    """Why an endpoint cannot serve this adapter, with the cure; empty: it can."""
    spec = endpoint.spec
    if spec.model.source != seen.spec.model.source:
        return (
            f"ModelEndpoint {name} serves base model {spec.model.source}, but this adapter belongs to {seen.spec.model.source}: "
            "name another endpoint in a new job, or change the endpoint's spec.model"
        )
    if served_name and spec.engine != "vLLM":
        return (
            f"ModelEndpoint {name} serves {spec.served_name or name}, and engine {spec.engine} serves one adapter only, so not {served_name} beside it: "
            "set its spec.engine to vLLM, or name another endpoint in a new job"
        )
    if served_name and spec.quantization == "Merged":
        return (
            f"ModelEndpoint {name} serves merged weights, which are one model, so not {served_name} beside it: "
            "set its spec.quantization to AsTrained or None, or name another endpoint in a new job"
        )
    if served_name and len(spec.adapters) >= MAX_ADAPTERS and served_name not in proposals(spec):
        return (
            f"ModelEndpoint {name} has {MAX_ADAPTERS} names beside its own already, so {served_name} has no room: "
            "remove one from its spec.adapters, or name another endpoint in a new job"
        )
    return ""


def obstacle(seen: JobState) -> Stated | None:
    """Why the endpoint that a job names will not serve what it trains, as it is now: asked before a GPU is taken."""
    inference, endpoint = seen.spec.inference, seen.endpoint
    if inference is None or endpoint is None:
        return None
    name = endpoint_name(seen.owner, inference)
    if endpoint.owner_uid not in ("", seen.owner.uid):
        return Stated("False", Reason.NAME_CONFLICT, _belongs_to_another(name))
    own = ("", endpoint.spec.served_name or name)
    refusal = _refusal(seen, endpoint, name, "" if inference.served_name in own else inference.served_name or "")
    return Stated("False", Reason.WAITING_FOR_ENDPOINT, refusal) if refusal else None


def _belongs_to_another(name: str) -> str:
    return f"ModelEndpoint {name} belongs to another object and is deleted with it: name another endpoint in a new job"


def _told(state: Deploy) -> Deploy:
    """What holds the version up holds its evaluation up as well."""
    both = state.evaluated and state.deployed and state.evaluated.status == state.deployed.status == "Unknown"
    return replace(state, evaluated=state.deployed) if both else state


def _superseded(name: str, by: str) -> Stated:
    message = f"ModelEndpoint {name} was given another version{f' by job {by}' if by else ''} before this one had the traffic; the adapter stays in storage"
    return Stated("False", Reason.SUPERSEDED, message)


def _decided(under_way: Deploy, endpoint: EndpointView, mine: VersionStatus | None, name: str, standing: str) -> Deploy:
    """What the endpoint says of this version."""
    result = mine.evaluation if mine else None
    evaluated = under_way.evaluated
    if evaluated and result:
        text = f"pass rate {result.candidate.pass_rate}" if result.candidate else "the evaluation loss is within its bound"
        evaluated = Stated("True", Reason.GATE_OPEN, text) if result.passed else Stated("False", Reason.GATE_CLOSED, "; ".join(result.reasons))
    state = replace(under_way, evaluated=evaluated, evaluation=result or under_way.evaluation)
    if mine and mine.trusted and mine.role != "Rejected":
        at, called = (under_way.endpoint.url, under_way.endpoint.served_name) if under_way.endpoint else ("", None)
        serves = f"ModelEndpoint {name} serves this adapter at {at}{f' as {called}' if called else ''}"
        # Evaluated stays as it is where somebody let the version through by naming it.
        passed = state.evaluated if state.evaluated and state.evaluated.status == "True" else state.evaluated and Stated("True", Reason.PINNED, _LET_THROUGH)
        return replace(state, evaluated=passed, deployed=Stated("True", Reason.DEPLOYED, serves))
    if mine and mine.role == "Rejected":
        return replace(state, deployed=Stated("False", mine.reason or Reason.CRASH_LOOP, mine.message or ""))
    if mine and mine.role == "Retired":
        return replace(state, deployed=_superseded(name, standing))
    if endpoint.spec.version is not None and mine is None:
        message = f"ModelEndpoint {name} is pinned to version {endpoint.spec.version}: remove its spec.version to let this one through"
        return replace(state, deployed=Stated("Unknown", Reason.PINNED, message))
    # What the endpoint says of itself counts where something holds it up; how it gets on is its own story.
    told = next((c for c in endpoint.status.conditions if c.type == "Progressing"), None)
    held = told if told and ((told.status == "True" and told.reason not in _WELL) or told.reason in (Reason.NAME_CONFLICT, Reason.REFUSED)) else None
    return replace(state, deployed=Stated("Unknown", held.reason, held.message)) if held else state
