"""What a ModelEndpoint needs next: objects and conditions that follow from the record of its versions."""

from finetune_operator import clock, names
from finetune_operator.api.meta import ConditionType
from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.build import config as build_config
from finetune_operator.build import evaluation as build_evaluation
from finetune_operator.build import serving
from finetune_operator.reasons import Reason
from finetune_operator.settings import Settings

from . import canary, live, recreate
from .adapters import proposals, public, refs, served
from .choice import brought, forget_names, target
from .errand import Stand
from .faults import Fault, refusal
from .gate import Gate, beside, job_name
from .merge import is_missing, merge_body
from .pods import why
from .rollout import SWITCH_SECONDS, Rollout, compared, drop_candidates, retire, roll, wanted_replicas, watch
from .status import Conditions
from .types import Body, EndpointState, Plan, Ref
from .versions import Target, Versions, host_of, version_of


def _replicas(rollout: Rollout, version: VersionStatus, wanted: Target | None) -> int:
    """Pods that a version has in its role."""
    spec, versions = rollout.seen.spec, rollout.versions
    if version.role == "Candidate" and wanted:
        return 0 if recreate.waits(rollout, version) else wanted_replicas(rollout, wanted, rollout.verdict)
    if rollout.incumbent and version.name == rollout.incumbent.name:
        asked = wanted and compared(rollout, wanted)
        return 0 if recreate.makes_room(rollout) else max(spec.replicas, int(bool(asked)))
    current = versions.current
    watched = current is not None and rollout.age(current) < max(SWITCH_SECONDS, spec.strategy.watch_seconds)
    return 0 if spec.strategy.type == "Recreate" else spec.replicas if watched else min(1, spec.replicas)


def _can_be_made(seen: EndpointState, version: VersionStatus, settings: Settings) -> bool:
    """Whether today's spec makes the same version of its adapters, and all that it is made of is there."""
    return not is_missing(seen.spec, version) and version_of(seen.owner.name, seen.spec, refs(served(version)), settings) == version.name


def _write_off(rollout: Rollout, settings: Settings) -> None:
    """A previous version whose Deployment somebody deleted cannot be rolled back to at once when today's spec makes another one of its adapter."""
    for version in rollout.versions.having("Previous"):
        if rollout.deployment(version.name) is None and not _can_be_made(rollout.seen, version, settings):
            rollout.versions.move(version, "Retired", served=True)


def _version_objects(rollout: Rollout, version: VersionStatus, replicas: int, settings: Settings) -> tuple[Body, Body, Body]:
    """Deployment, ConfigMap and Service of a version; of those that share a Deployment the one that is public."""
    owner, spec, name = rollout.seen.owner, rollout.seen.spec, version.place
    told = live.told(rollout, spec, version) if version.host else None
    config = build_config.serve_config(owner.name, spec, refs(served(version)), settings, version.merged, told)
    # Of pods that outlive versions nothing may depend on which one it is: another template would start new ones.
    size = None if version.host else version.model_bytes
    return (  # the Deployment first, as it goes last: what is left of a version is found by it
        serving.deployment(owner, spec, settings, name, replicas, size),
        build_config.config_map(owner, name, serving.version_labels(owner, name), config),
        serving.version_service(owner, name),
    )


def _all_of(version: str, uid: str = "") -> tuple[Ref, ...]:
    """Everything that was made for a version. `uid`: of its Deployment."""
    config = Ref("v1", "ConfigMap", names.evaluation_config(version))
    return (Ref("v1", "Service", version), Ref("v1", "ConfigMap", version), config, Ref("apps/v1", "Deployment", version, uid))


def _given_up(rollout: Rollout) -> list[VersionStatus]:
    """Versions that had objects until now. Their Deployment may be gone already, by somebody's hand."""
    past = {v.name for v in rollout.versions.having("Rejected", "Retired")}
    return [v for v in rollout.seen.status.versions if v.name in past and v.role not in ("Rejected", "Retired")]


def _evaluation(rollout: Rollout, settings: Settings) -> Plan:
    """Objects of the merge or the evaluation that is under way; those of others go."""
    seen, verdict, owner = rollout.seen, rollout.verdict, rollout.seen.owner
    candidate = next(iter(rollout.versions.having("Candidate")), None)
    plan, awaited = Plan(), ""
    if candidate and rollout.merge and rollout.merge.stand in (Stand.START, Stand.WAIT):
        awaited = names.merge_job(owner.name, candidate.name)
        plan = Plan(create=(merge_body(seen, candidate, settings),) if rollout.merge.stand is Stand.START else ())
    elif candidate and verdict and verdict.question and verdict.gate in (Gate.ASK, Gate.WAIT):
        question, current = verdict.question, rollout.versions.current
        awaited = job_name(owner.name, candidate.name, question, current)
        asked = live.asked_as(rollout, candidate, question.served)
        config = build_evaluation.evaluate_config(
            owner, seen.spec, question.gates, served(candidate)[question.served], candidate, beside(question, current), asked
        )
        create = (build_evaluation.evaluation_job(owner, seen.spec, settings, awaited, candidate.place, question.gates),) if verdict.gate is Gate.ASK else ()
        plan = Plan(apply=(build_evaluation.evaluation_config(owner, candidate.place, config),), create=create)
    over = [j for j in seen.jobs if j.name != awaited and j.owner_uid == owner.uid and not j.deleting]
    if over:  # one at a time: questions of two gates at once would slow each other down
        plan = Plan()
    return Plan(apply=plan.apply, create=plan.create, delete=tuple(Ref("batch/v1", "Job", j.name, j.uid) for j in over))


def _plan(rollout: Rollout, wanted: Target | None, settings: Settings) -> Plan:
    """All objects as the record of versions wants them."""
    seen, owner, versions = rollout.seen, rollout.seen.owner, rollout.versions
    apply: list[Body] = []
    made: list[str] = []
    patch: list[tuple[Ref, Body]] = []
    kept = versions.having("Current", "Candidate", "Previous")
    for version in kept:
        if version.host and version != live.shown(rollout, version.host):
            continue  # another one stands for all in its pods
        replicas = max(_replicas(rollout, v, wanted) for v in kept if v.place == version.place)
        view = rollout.deployment(version.name)
        if version.role == "Candidate" and rollout.held and view is None:
            continue
        if _can_be_made(seen, version, settings):
            deployment, config, service = _version_objects(rollout, version, replicas, settings)
            apply += [deployment, config, service]
            made.append(version.place)
            if version.host:
                patch += live.nudges(rollout, version.host, config["data"]["config.json"])
        elif view and view.replicas != replicas:  # made by an older spec, so only its size is ours to change
            patch.append((Ref("apps/v1", "Deployment", version.place), {"spec": {"replicas": replicas}}))
    if current := versions.current:
        # Traffic moves before pods go, and through a Gateway first: where its route is refused the version stays where it is.
        apply = [*canary.objects(rollout, made), serving.service(owner, current.place), *apply, serving.disruption_budget(owner, current.place)]
    keep = {v.place for v in kept}
    over = [d for d in seen.deployments if d.name not in keep and d.owner_uid == owner.uid and not d.deleting]
    # The Deployment goes last: while it is seen, what goes with it is deleted again.
    delete = [*canary.leftovers(rollout), *(ref for d in over for ref in _all_of(d.name, d.uid))]
    gone, deleted = _given_up(rollout), keep | {d.name for d in over}
    delete += [ref for place in dict.fromkeys(v.place for v in gone) if place not in deleted for ref in _all_of(place)]
    asked = _evaluation(rollout, settings)
    untried = {v.place for v in versions.having("Candidate")} - {v.place for v in versions.having("Current", "Previous")}
    untried |= {body["metadata"]["name"] for body in (*asked.apply, *asked.create)}
    return Plan(
        apply=(*apply, *asked.apply), create=asked.create, patch=tuple(patch), delete=(*delete, *asked.delete), untried=frozenset(untried),
        requeue_after=max(0.0, min(rollout.due)) if rollout.due else None,
    )  # fmt: skip


def _readiness(rollout: Rollout, settings: Settings) -> tuple[bool, Fault]:
    """Do users get answers?"""
    current = rollout.versions.current
    if current is None:
        return False, rollout.progress
    if rollout.seen.spec.replicas == 0:
        return False, Fault(Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    view = rollout.deployment(current.name)
    if view and view.ready:
        return True, Fault(Reason.READY, f"version {current.name}: {view.ready} of {view.replicas} pods answer")
    if view is None and not _can_be_made(rollout.seen, current, settings):
        cure = f"set spec.version to {current.name} to serve its adapter as today's spec says"
        return False, Fault(Reason.DEPLOYMENT_DELETED, f"Deployment {current.place} was deleted, and the spec has changed since it was made: {cure}")
    return False, rollout.progress if recreate.makes_room(rollout) else why(rollout, current.name)


def _state(rollout: Rollout, settings: Settings, conditions: Conditions) -> None:
    ready, fault = _readiness(rollout, settings)
    if budget := rollout.seen.budget_fault:
        fault = Fault(fault.reason, f"{fault.message}; drains may take all pods at once: {refusal([budget])}")
    conditions.set(ConditionType.READY, "True" if ready else "False", fault.reason, fault.message)
    conditions.set(ConditionType.PROGRESSING, "True" if rollout.under_way else "False", rollout.progress.reason, rollout.progress.message)


def _unknown(seen: EndpointState, versions: Versions) -> Fault:
    """There is nothing to roll out."""
    if seen.spec.version is None and (current := versions.current):
        return Fault(Reason.UP_TO_DATE, f"version {current.name} has the traffic, and nothing else is proposed")
    if seen.spec.version is None:
        return Fault(Reason.NO_VERSION, "no version yet: a FineTuneJob proposes one when it is trained, or set spec.candidate")
    served = [v.name for v in versions.all() if v.trusted]
    known = f"name one that has had the traffic ({', '.join(served)}), the candidate," if served else "name the candidate,"
    return Fault(Reason.VERSION_NOT_FOUND, f"spec.version {seen.spec.version} is none that can be served: {known} or remove spec.version")


def _traffic(versions: list[VersionStatus]) -> dict[str, tuple[str, int | None, int | None, bool | None]]:
    """What moves nobody's requests as long as it stays the same."""
    return {v.name: (v.role, v.step, v.weight, v.public) for v in versions}


def decide(seen: EndpointState, settings: Settings, now: float) -> Plan:
    """Plan for a ModelEndpoint at `now` (seconds)."""
    owner, spec, status = seen.owner, seen.spec, seen.status
    conditions = Conditions(status.conditions, owner.generation, clock.text(now))
    rollout = Rollout(seen, Versions(status.versions, clock.text(now), proposals(spec)), now, host=host_of(owner.name, spec, settings))
    conditions.drop(ConditionType.ACCEPTED)  # stated while the spec could not be read
    if seen.conflicts:
        message = f"{', '.join(seen.conflicts)} exists and belongs to somebody else: delete or rename it, or give the endpoint another name"
        conditions.set(ConditionType.READY, "False", Reason.NAME_CONFLICT, message)
        conditions.set(ConditionType.PROGRESSING, "False", Reason.NAME_CONFLICT, message)
        plan = Plan(requeue_after=30)
    elif seen.blocked:
        rollout.progress = Fault(Reason.REFUSED, refusal([seen.blocked]))
        _state(rollout, settings, conditions)
        plan = Plan(requeue_after=30)
    else:
        forget_names(spec, rollout.versions)
        alive = {v.name for v in status.versions if live.is_there(rollout, v)}
        wanted = target(owner.name, spec, rollout.versions, alive, settings)
        if watch(rollout, brought(spec, rollout.versions.current, wanted)):
            wanted = target(owner.name, spec, rollout.versions, alive, settings)
        if wanted:
            roll(rollout, wanted)
        else:
            drop_candidates(rollout)
            rollout.progress = _unknown(seen, rollout.versions)
        retire(rollout)
        _write_off(rollout, settings)
        live.settle(rollout)
        canary.record(rollout)
        canary.state(rollout, conditions)
        plan = _plan(rollout, wanted, settings)
        if not seen.live and (plan.create or plan.delete or _traffic(status.versions) != _traffic(rollout.versions.all())):
            return Plan(look=True, status=status.dump())
        _state(rollout, settings, conditions)
    conditions.observed()
    current = rollout.versions.current
    view = rollout.deployment(current.name) if current else None
    told = conditions.get(ConditionType.READY)
    if told and told.status == "True" and rollout.progress.reason != Reason.UP_TO_DATE:
        told = conditions.get(ConditionType.PROGRESSING)
    own = build_config.own_name(owner.name, spec, current)
    update = {
        "observed_generation": owner.generation,
        "url": serving.url(owner.name, owner.namespace),
        "served_name": own,
        "served_names": public(current, own) if current else [],
        "ready_replicas": view.ready if view else 0,
        "replicas": view.replicas if view else 0,
        "selector": serving.selector(owner.name, current.place) if current else "",
        "reason": told.reason if told else "",
        "versions": rollout.versions.all(),
        "conditions": conditions.all(),
    }
    return Plan(
        create=plan.create, apply=plan.apply, patch=plan.patch, delete=plan.delete, untried=plan.untried, requeue_after=plan.requeue_after,
        status=status.model_copy(update=update).dump(),
    )  # fmt: skip
