"""What a ModelEndpoint needs next: the candidate's pods up and answering, then the Service, then the old pods gone."""

import json
from dataclasses import replace

from finetune_operator import clock, names
from finetune_operator.api.meta import ConditionType
from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec, VersionStatus
from finetune_operator.build import config as build_config
from finetune_operator.build import serving
from finetune_operator.observe import DeploymentView, PodView
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings

from .faults import Fault, waiting
from .status import Conditions
from .types import Body, EndpointState, Plan, Ref

SWITCH_SECONDS = 5.0


def version_name(endpoint: str, spec: ModelEndpointSpec, candidate: Candidate, settings: Settings) -> str:
    """Name of the version that this spec and candidate make. Only replicas may change without a new version."""
    content = spec.dump()
    for field in ("replicas", "strategy", "gate", "version", "keepPrevious", "autoRollback", "candidate"):
        content.pop(field, None)
    content["adapter"] = candidate.adapter.dump()
    content["image"] = settings.inference_image if spec.engine == "vLLM" else settings.trainer_image
    return names.endpoint_version(endpoint, json.dumps(content, sort_keys=True))


def _objects(seen: EndpointState, version: str, candidate: Candidate, settings: Settings) -> tuple[Body, ...]:
    config = build_config.serve_config(seen.owner.name, seen.spec, candidate.adapter, settings)
    labels = serving.version_labels(seen.owner, version)
    return (build_config.config_map(seen.owner, version, labels, config), serving.deployment(seen.owner, seen.spec, settings, version))


def _is_up(view: DeploymentView | None, replicas: int) -> bool:
    return view is not None and view.current and not view.deleting and view.ready >= min(1, replicas)


def _why(version: str, pods: tuple[PodView, ...]) -> Fault:
    """What holds a version up, from its newest pod."""
    pod = max((p for p in pods if p.parent == version and not p.deleting), key=lambda p: (p.created_at, p.name), default=None)
    if pod is None:
        return Fault(Reason.STARTING, f"version {version}: waiting for its pods to be created")
    if fault := waiting(pod):
        reason = Reason.FETCH_FAILED if pod.ended and pod.ended.container == names.FETCH_CONTAINER and pod.ended.exit_code else fault.reason
        return Fault(reason, f"version {version}, pod {pod.name}: {fault.message}")
    state = "loads the model" if pod.running else "fetches the model and the adapter"
    return Fault(Reason.ROLLING_OUT, f"version {version}: pod {pod.name} {state}")


def _retire(seen: EndpointState, keep: set[str]) -> tuple[Ref, ...]:
    """Versions that nobody needs any more."""
    old = [d for d in seen.deployments if d.name not in keep and d.owner_uid == seen.owner.uid and not d.deleting]
    return tuple(ref for d in old for ref in (Ref("apps/v1", "Deployment", d.name), Ref("v1", "ConfigMap", d.name)))


def decide(seen: EndpointState, settings: Settings, now: float) -> Plan:
    """Plan for a ModelEndpoint at `now` (seconds)."""
    owner, spec, status = seen.owner, seen.spec, seen.status
    conditions = Conditions(status.conditions, owner.generation, clock.text(now))
    plan = Plan()
    versions: list[VersionStatus] = []
    current = status.current()
    live = {d.name: d for d in seen.deployments if d.owner_uid == owner.uid}
    if seen.conflicts:
        message = f"{', '.join(seen.conflicts)} exists and belongs to somebody else: delete or rename it, or give the endpoint another name"
        conditions.set(ConditionType.READY, "False", Reason.NAME_CONFLICT, message)
        conditions.set(ConditionType.PROGRESSING, "False", Reason.NAME_CONFLICT, message)
        versions, plan = list(status.versions), replace(plan, requeue_after=30)
    elif spec.candidate is None:
        conditions.set(ConditionType.READY, "False", Reason.NO_VERSION, "no version yet: a FineTuneJob proposes one when it is trained, or set spec.candidate")
        conditions.set(ConditionType.PROGRESSING, "False", Reason.NO_VERSION)
    else:
        wanted = version_name(owner.name, spec, spec.candidate, settings)
        fresh = VersionStatus(name=wanted, role="Candidate", job=spec.candidate.job, job_uid=spec.candidate.job_uid, adapter=spec.candidate.adapter)
        # Traffic moves only to pods that have answered; until then the current version keeps it.
        moved = _is_up(live.get(wanted), spec.replicas)
        if moved or (current and current.name == wanted):
            current = fresh.model_copy(update={"role": "Current"})
        serves = current.name if current else wanted
        apply = (*_objects(seen, wanted, spec.candidate, settings), serving.service(owner, serves))
        versions = [v for v in (current, None if current and current.name == wanted else fresh) if v]
        # The old version's pods go one round later: by then every node sends new connections to the new ones.
        before = status.current()
        keep = {v.name for v in (*versions, before) if v}
        switching = before is not None and current is not None and before.name != current.name
        plan = replace(plan, apply=apply, delete=_retire(seen, keep), requeue_after=SWITCH_SECONDS if switching else None)
        _conclude(conditions, seen, wanted, current, live)
    ready = conditions.get(ConditionType.READY)
    serving_view = live.get(current.name) if current else None
    update = {
        "observed_generation": owner.generation,
        "url": serving.url(owner.name, owner.namespace),
        "served_name": spec.served_name or owner.name,
        "ready_replicas": serving_view.ready if serving_view else 0,
        "replicas": serving_view.replicas if serving_view else 0,
        "selector": f"{names.LABEL_ENDPOINT}={owner.name}",
        "reason": ready.reason if ready else "",
        "versions": versions,
        "conditions": conditions.all(),
    }
    return replace(plan, status=status.model_copy(update=update).dump())


def _conclude(conditions: Conditions, seen: EndpointState, wanted: str, current: VersionStatus | None, live: dict[str, DeploymentView]) -> None:
    """State Ready (do users get answers?) and Progressing (is a version on its way?)."""
    view = live.get(current.name) if current else None
    if seen.spec.replicas == 0:
        conditions.set(ConditionType.READY, "False", Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    elif view and view.ready:
        conditions.set(ConditionType.READY, "True", Reason.READY, f"version {view.name}: {view.ready} of {view.replicas} pods answer")
    else:
        fault = _why(current.name if current else wanted, seen.pods)
        conditions.set(ConditionType.READY, "False", fault.reason, fault.message)
    if current and current.name == wanted:
        conditions.set(ConditionType.PROGRESSING, "False", Reason.UP_TO_DATE, f"version {wanted} has the traffic")
    else:
        fault = _why(wanted, seen.pods)
        conditions.set(ConditionType.PROGRESSING, "True", fault.reason, fault.message)
