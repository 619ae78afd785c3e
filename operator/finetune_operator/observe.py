"""Small frozen views of Kubernetes objects: what decisions need, and nothing else is kept in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import names

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobView:
    """A Kubernetes Job of one attempt."""

    name: str
    owner_uid: str
    step: str
    attempt: int
    suspended: bool
    complete: bool
    failed: bool
    failure: str  # message of the Failed condition
    finished_at: str
    deleting: bool
    uid: str = ""
    suspended_at: str = ""  # when its controller took note of the suspension; empty while it is not suspended
    pods: int = 0  # active and terminating ones, as its controller counts them
    started_at: str = ""  # since when its controller makes pods; empty while it is suspended, or has not been taken note of
    queue: str = ""  # Kueue's LocalQueue; empty: spec.suspend is ours alone
    image: str = ""

    @property
    def live(self) -> bool:
        """Whether pods of it run or may still come."""
        return not (self.complete or self.failed or self.deleting)

    @property
    def at_rest(self) -> bool:
        """Whether it is suspended and its controller has seen its last pod end."""
        return self.suspended and bool(self.suspended_at) and self.pods == 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended."""

    container: str
    exit_code: int
    reason: str
    message: str
    finished_at: str


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of a step or of a serving version."""

    name: str
    uid: str
    parent: str  # Kubernetes Job, or version of an endpoint
    owner_name: str  # FineTuneJob or ModelEndpoint
    phase: str
    node: str
    created_at: str
    deleting: bool
    running: bool
    ready: bool
    waiting_reason: str
    waiting_message: str
    unschedulable: str
    restarts: int
    ended: Ended | None
    job_uid: str = ""  # FineTuneJob that it works for
    disruption: str = ""  # why it is taken away, in Kubernetes' words
    step: str = ""  # what it does; empty: it serves
    address: str = ""
    told: str = ""  # digest of the list of adapters that it was told last
    gone: bool = False  # deleted; this is what was seen last
    gone_at: float = 0.0  # when that was heard, in seconds
    verdict: str = ""  # why a node ended it as a whole, in the kubelet's words
    foreign: str = ""  # a container that somebody has injected and that failed, with its exit code
    controller: str = ""  # UID of what made it

    @property
    def alive(self) -> bool:
        """Whether its containers may still run."""
        return not self.gone and self.phase not in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """Kueue's Workload of a Kubernetes Job."""

    name: str
    job_uid: str  # Kubernetes Job
    active: bool
    paused: bool  # by us, for spec.suspend
    reserved: bool
    reason: str  # why there is or is no quota, in Kueue's words
    message: str
    evicted: str  # reason of the last eviction; empty while it is not evicted
    finished: bool
    checks: str = ""  # admission checks that have yet to let it in although quota is reserved, with their words; empty: none


@dataclass(frozen=True, slots=True)
class NodeView:
    """What of a node decides whether a training fits."""

    name: str
    labels: Mapping[str, str]
    gpus: int  # allocatable of the resource that was asked for


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """Deployment of one version of an endpoint."""

    name: str
    owner_uid: str
    replicas: int
    ready: int
    current: bool  # its controller has seen the newest spec
    deleting: bool
    uid: str = ""
    refusal: str = ""  # why its pods are not made, in the API server's words


@dataclass(frozen=True, slots=True)
class RouteView:
    """HTTPRoute of an endpoint."""

    name: str
    owner_uid: str
    uid: str = ""
    accepted: bool = False  # by every Gateway that has answered, and one has
    refusal: str = ""  # what a Gateway says against it; empty: nothing


def _conditions(raw: Raw) -> dict[str, Raw]:
    return {c["type"]: c for c in (raw.get("status") or {}).get("conditions") or []}


def controller(raw: Raw) -> Raw:
    """Owner reference of the controller of an object; empty when it has none."""
    owners = raw.get("metadata", {}).get("ownerReferences") or []
    return next((o for o in owners if o.get("controller")), {})


def owner_uid(raw: Raw) -> str:
    """UID of the controller of an object; empty when it has none."""
    return str(controller(raw).get("uid", ""))


def job_view(raw: Raw) -> JobView:
    """View of a batch/v1 Job that carries our labels."""
    meta, conditions = raw["metadata"], _conditions(raw)
    labels = meta.get("labels") or {}
    failed = conditions.get("Failed", {})
    complete = conditions.get("Complete", {})
    last = failed if failed.get("status") == "True" else complete
    status, suspended = raw.get("status") or {}, conditions.get("Suspended", {})
    return JobView(
        name=meta["name"],
        owner_uid=owner_uid(raw),
        step=labels.get(names.LABEL_STEP, ""),
        attempt=int(labels.get(names.LABEL_ATTEMPT, 0)),
        suspended=bool(raw["spec"].get("suspend")),
        complete=complete.get("status") == "True",
        failed=failed.get("status") == "True",
        failure=failed.get("message", ""),
        finished_at=last.get("lastTransitionTime", ""),
        deleting="deletionTimestamp" in meta,
        uid=meta["uid"],
        suspended_at=suspended.get("lastTransitionTime", "") if suspended.get("status") == "True" else "",
        pods=status.get("active", 0) + status.get("terminating", 0),
        started_at=status.get("startTime") or "",
        queue=labels.get(names.LABEL_QUEUE, ""),
        image=raw["spec"]["template"]["spec"]["containers"][0]["image"],
    )


# What else is in a pod was injected, by a service mesh for example: how that ends says nothing about the step.
_OURS = (names.CONTAINER, names.FETCH_CONTAINER, names.FOLLOW_CONTAINER)


def _ended(statuses: list[Raw]) -> Ended | None:
    """The container of ours that decided: a failed one first, else the main one."""
    found = []
    for status in statuses:
        # A crash-looping container is waiting now; how it ended is in its last state.
        state = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
        if state:
            found.append(Ended(status["name"], state.get("exitCode", 0), state.get("reason") or "", state.get("message") or "", state.get("finishedAt") or ""))
    failed = [e for e in found if e.exit_code != 0]
    return next(iter(failed), None) or next((e for e in found if e.container == names.CONTAINER), None)


def _failed(status: Raw) -> Raw | None:
    """How a container ended, where that was by itself and not well."""
    ended: Raw = (status.get("state") or {}).get("terminated") or {}
    return ended if ended.get("exitCode") and ended.get("reason") != "ContainerStatusUnknown" else None


def pod_view(raw: Raw) -> PodView:
    """View of a pod that carries our labels."""
    meta, status = raw["metadata"], raw.get("status") or {}
    labels = meta.get("labels") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    ours, others = [s for s in statuses if s["name"] in _OURS], [s for s in statuses if s["name"] not in _OURS]
    main: Raw = next((s.get("state") or {} for s in status.get("containerStatuses") or [] if s["name"] == names.CONTAINER), {})
    running = bool(main.get("running"))
    # Another's container can keep ours from its start; once that has run, how the other one fares says nothing about it.
    waiting = [
        w
        for s in sorted(statuses, key=lambda s: s["name"] not in _OURS)
        if (w := (s.get("state") or {}).get("waiting"))
        and w.get("reason") not in ("PodInitializing", "ContainerCreating")
        and (s in ours or not (running or main.get("terminated")))
    ]
    conditions = _conditions(raw)
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        parent=labels.get(names.LABEL_VERSION) or labels.get(names.ANNOTATION_JOB_NAME, ""),
        owner_name=labels.get(names.LABEL_JOB) or labels.get(names.LABEL_ENDPOINT, ""),
        phase=status.get("phase", "Pending"),
        node=raw["spec"].get("nodeName", ""),
        created_at=meta.get("creationTimestamp", ""),
        deleting="deletionTimestamp" in meta,
        running=running,
        ready=conditions.get("Ready", {}).get("status") == "True",
        waiting_reason=waiting[0].get("reason", "") if waiting else "",
        waiting_message=waiting[0].get("message", "") if waiting else "",
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        restarts=sum(s.get("restartCount", 0) for s in ours),
        ended=_ended(ours),
        job_uid=labels.get(names.LABEL_JOB_UID, ""),
        step=labels.get(names.LABEL_STEP, ""),
        address=status.get("podIP", ""),
        told=(meta.get("annotations") or {}).get(names.ANNOTATION_TOLD, ""),
        foreign=next((f"container {s['name']} ended with {ended['exitCode']}" for s in others if (ended := _failed(s))), ""),
        controller=owner_uid(raw),
        verdict=f"{status['reason']}: {status.get('message', '')}".rstrip(". ") if status.get("reason") and status.get("phase") == "Failed" else "",
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
    )


def workload_view(raw: Raw) -> WorkloadView:
    """View of a kueue.x-k8s.io/v1beta2 Workload."""
    meta, conditions = raw["metadata"], _conditions(raw)
    quota, evicted = conditions.get("QuotaReserved", {}), conditions.get("Evicted", {})
    return WorkloadView(
        name=meta["name"],
        job_uid=owner_uid(raw),
        active=raw["spec"].get("active", True),
        paused=(meta.get("annotations") or {}).get(names.ANNOTATION_PAUSED) == "true",
        reserved=quota.get("status") == "True",
        reason=quota.get("reason", ""),
        message=quota.get("message", ""),
        evicted=evicted.get("reason", "") if evicted.get("status") == "True" else "",
        finished=conditions.get("Finished", {}).get("status") == "True",
        checks="" if conditions.get("Admitted", {}).get("status") == "True" else "; ".join(_pending_checks(raw)),
    )


def _pending_checks(workload: Raw) -> list[str]:
    checks = (workload.get("status") or {}).get("admissionChecks") or []
    return [f"{c['name']}: {c.get('state', 'Pending')}{f' ({text})' if (text := c.get('message')) else ''}" for c in checks if c.get("state") != "Ready"]


def node_view(raw: Raw, resource: str) -> NodeView:
    """View of a node, with the number of `resource` that it offers."""
    allocatable = (raw.get("status") or {}).get("allocatable") or {}
    return NodeView(name=raw["metadata"]["name"], labels=raw["metadata"].get("labels") or {}, gpus=int(allocatable.get(resource, 0)))


def deployment_view(raw: Raw) -> DeploymentView:
    """View of an apps/v1 Deployment that carries our labels."""
    meta, status, refused = raw["metadata"], raw.get("status") or {}, _conditions(raw).get("ReplicaFailure", {})
    return DeploymentView(
        name=meta["name"],
        owner_uid=owner_uid(raw),
        replicas=raw["spec"].get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        current=status.get("observedGeneration", 0) >= meta.get("generation", 0),
        deleting="deletionTimestamp" in meta,
        uid=meta["uid"],
        refusal=refused.get("message", "") if refused.get("status") == "True" else "",
    )


def _refusal(parent: Raw, generation: int) -> str:
    """What one Gateway says against a route as it is now; empty when nothing."""
    told = [c for c in parent.get("conditions") or [] if c["type"] in ("Accepted", "ResolvedRefs") and c.get("observedGeneration", generation) >= generation]
    where = f"Gateway {parent['parentRef'].get('name', '')}"
    return "; ".join(f"{where}: {c.get('reason', '')}: {c.get('message', '')}" for c in told if c["status"] == "False")


def route_view(raw: Raw) -> RouteView:
    """View of a gateway.networking.k8s.io/v1 HTTPRoute. Several controllers may answer for one Gateway; only what they say counts."""
    meta, parents = raw["metadata"], (raw.get("status") or {}).get("parents") or []
    generation = meta.get("generation", 0)
    accepted = [any(c["type"] == "Accepted" and c["status"] == "True" for c in p.get("conditions") or []) for p in parents]
    return RouteView(
        name=meta["name"],
        owner_uid=owner_uid(raw),
        uid=meta["uid"],
        accepted=bool(accepted) and all(accepted),
        refusal="; ".join(found for p in parents if (found := _refusal(p, generation))),
    )
