"""Wiring of kopf: every event only puts the owner's key on the work queue; caches hold small views.

No change handlers, timers, daemons, patches or finalizers: a custom resource can always be deleted, also when the
operator is down.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, cast
from urllib.parse import urlsplit

import kopf

from . import job_metrics, names
from .api import GROUP, VERSION
from .kube import ApiError, Cluster
from .objects import Key
from .observe import deployment_view, job_view, pod_view, route_view, workload_view
from .plan.types import Ref
from .progress import ProgressStore
from .queue import WorkQueue
from .reconcile import Caches, Reconciler
from .settings import Settings
from .status_server import StatusServer, health_app, serve
from .tls import make_identity

log = logging.getLogger(__name__)
KUEUE = ("kueue.x-k8s.io", "v1beta2")
ROUTES = (names.GATEWAY_GROUP, "v1")
LATER_EVERY = 30.0  # seconds
OURS = {names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
_OWNED = (("batch", "v1", "jobs"), ("", "v1", "pods"), ("apps", "v1", "deployments"), ("", "v1", "services"), (*ROUTES, "httproutes"))


class Runtime:
    """Everything that lives as long as the process; kopf hands it to the handlers as `memo`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.progress = ProgressStore()
        self.caches: Any = None
        self.reconciler: Reconciler | None = None
        self.queue: WorkQueue[Key] = WorkQueue(self._work, settings.workers)
        self.ready = False
        self.ended = asyncio.Event()  # this process wants to end
        self._tasks: list[asyncio.Task[None]] = []
        self._runners: list[Any] = []

    async def _work(self, key: Key) -> float | None:
        self.ready = True  # handlers run only once all caches are filled
        return await self.reconciler.reconcile(key) if self.reconciler else 1.0

    def job_of(self, namespace: str, job: str, pod: str, uid: str) -> str:
        """UID of the FineTuneJob of a name that a pod works for; empty when it works for none."""
        # Serving pods are cached under their endpoint's name, which may be the job's: the job's UID tells them apart.
        owners = {raw["metadata"]["uid"] for raw in self.caches.finetunejobs.get((namespace, job), ())}
        views = self.caches.pods.get((namespace, job), ())
        return next((str(view.job_uid) for view in views if view.name == pod and view.uid == uid and view.job_uid in owners), "")

    def _finetunejobs(self) -> Iterator[Mapping[str, Any]]:
        return (raw for found in self.caches.finetunejobs.values() for raw in found)

    def _reported(self, key: tuple[str, str]) -> None:
        self.queue.add_after(Key("FineTuneJob", *key), self.settings.progress_seconds)

    async def start(self, caches: Caches) -> None:
        """Connect, serve, and begin to work."""
        cluster = await Cluster.connect()
        # Before anything is opened, because kopf tries a start that fails again.
        queues, routes = await cluster.serves("/".join(KUEUE), "workloads"), await cluster.serves(names.GATEWAY_API, "httproutes")
        self.caches = caches
        host = urlsplit(self.settings.status_url).hostname
        identity = make_identity(host) if host else None
        self.reconciler = Reconciler(cluster, self.settings, caches, self.progress, identity.certificate if identity else "")
        self._runners.append(await serve(health_app(lambda: self.ready), self.settings.metrics_port))
        if identity:
            server = StatusServer(cluster, self.settings.audience, self.progress, self.job_of, self._reported)
            self._runners.append(await serve(server.app(), self.settings.status_port, identity.context))
        self._tasks.append(asyncio.create_task(self.queue.run(), name="work queue"))
        self._tasks.append(asyncio.create_task(self._settle(), name="readiness"))
        if not queues:
            self._tasks.append(asyncio.create_task(self._await_kind(cluster, "/".join(KUEUE), "workloads", self._queued), name="Kueue"))
        if not routes:
            self._tasks.append(asyncio.create_task(self._await_kind(cluster, names.GATEWAY_API, "httproutes", self._routed), name="Gateway API"))
        job_metrics.watch(self._finetunejobs, self.progress.latest)

    async def _settle(self) -> None:
        # In an empty cluster no event ever comes: the first lists are through long before this.
        await asyncio.sleep(5)
        self.ready = True

    def _queued(self) -> bool:
        """Whether a Job waits for Kueue."""
        return any(job.queue and job.live for found in list(self.caches.jobs.values()) for job in found)

    def _routed(self) -> bool:
        """Whether an endpoint needs an HTTPRoute."""
        endpoints = (raw for found in list(self.caches.modelendpoints.values()) for raw in found)
        return any(raw["spec"].get("strategy", {}).get("type") == "Canary" for raw in endpoints)

    async def _await_kind(self, cluster: Cluster, api_version: str, plural: str, wanted: Callable[[], bool]) -> None:
        """Where a kind comes later: kopf looks at its start which kinds there are, so this process ends for one that watches it."""
        while True:
            await asyncio.sleep(LATER_EVERY)
            with suppress(ApiError):
                if wanted() and await cluster.serves(api_version, plural):
                    log.info("%s of %s have been installed: ending, so that the process that comes next watches them", plural, api_version)
                    self.ended.set()
                    return

    async def stop(self) -> None:
        """End in reverse order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, memo: Any, **caches: Any) -> None:
    """Set kopf up and start our own machinery. `caches` has kopf's indices by their ids."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 60
    settings.watching.server_timeout = 600
    for resource in _OWNED:
        settings.watching.label_selectors[resource] = f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}"
    await cast("Runtime", memo.runtime).start(Caches(**{field.name: caches[field.name] for field in fields(Caches)}))


@kopf.on.cleanup()
async def cleanup(memo: Any, **_: Any) -> None:
    """Stop our own machinery."""
    await cast("Runtime", memo.runtime).stop()


def _snapshot(body: Any) -> dict[str, Any]:
    meta = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {"metadata": meta, "spec": dict(body.get("spec") or {}), "status": dict(body.get("status") or {})}


@kopf.index(GROUP, VERSION, "finetunejobs", id="finetunejobs")
def index_finetunejob(namespace: Any, name: str, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """FineTuneJobs by themselves."""
    return {(namespace, name): _snapshot(body)}


def awaited(name: str, spec: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Endpoint that a FineTuneJob names, as long as it has not ended; empty: none."""
    inference = spec.get("inference")
    return "" if inference is None or status.get("completionTime") else inference.get("endpoint") or name


@kopf.index(GROUP, VERSION, "finetunejobs", id="waiting")
def index_waiting(namespace: Any, name: str, spec: Any, status: Any, **_: Any) -> dict[tuple[str, str], str]:
    """Names of FineTuneJobs by the endpoint that they wait for, or are going to."""
    return {(namespace, endpoint): name} if (endpoint := awaited(name, spec, status)) else {}


@kopf.index(GROUP, VERSION, "modelendpoints", id="modelendpoints")
def index_modelendpoint(namespace: Any, name: str, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """ModelEndpoints by themselves."""
    return {(namespace, name): _snapshot(body)}


@kopf.index("batch", "v1", "jobs", id="jobs", labels={names.LABEL_JOB: kopf.PRESENT})
def index_job(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """Kubernetes Jobs by FineTuneJob."""
    return {(namespace, labels[names.LABEL_JOB]): job_view(body)}


@kopf.index("v1", "pods", id="pods", labels=OURS)
def index_pod(namespace: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """Pods by FineTuneJob or ModelEndpoint."""
    view = pod_view(body)
    return {(namespace, view.owner_name): view}


@kopf.index(*KUEUE, "workloads", id="workloads")
def index_workload(namespace: Any, meta: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """Kueue's Workloads by FineTuneJob: those of other Jobs are not ours to look at."""
    return {(namespace, job): workload_view(body)} if (job := _job_of_workload(meta)) else {}


@kopf.index("apps", "v1", "deployments", id="deployments", labels={names.LABEL_ENDPOINT: kopf.PRESENT})
def index_deployment(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """Deployments by ModelEndpoint."""
    return {(namespace, labels[names.LABEL_ENDPOINT]): deployment_view(body)}


@kopf.index(*ROUTES, "httproutes", id="routes", labels={names.LABEL_ENDPOINT: kopf.PRESENT})
def index_route(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """HTTPRoutes by ModelEndpoint."""
    return {(namespace, labels[names.LABEL_ENDPOINT]): route_view(body)}


@kopf.index("batch", "v1", "jobs", id="evaluations", labels={names.LABEL_ENDPOINT: kopf.PRESENT})
def index_evaluation(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[tuple[str, str], Any]:
    """Kubernetes Jobs by ModelEndpoint."""
    return {(namespace, labels[names.LABEL_ENDPOINT]): job_view(body)}


def _job_of_workload(meta: Any) -> str:
    """FineTuneJob whose Kubernetes Job a Workload stands for, by its name; the UID is checked where it is used."""
    owners = meta.get("ownerReferences") or []
    return next((names.job_of(o["name"]) for o in owners if o["kind"] == "Job" and o.get("controller")), "")


def _enqueue(memo: Any, kind: str, namespace: str, name: str) -> None:
    cast("Runtime", memo.runtime).queue.add(Key(kind, namespace, name))


@kopf.on.event(GROUP, VERSION, "finetunejobs")
def finetunejob_event(memo: Any, namespace: Any, name: str, **_: Any) -> None:
    """A FineTuneJob changed."""
    _enqueue(memo, "FineTuneJob", namespace, name)


@kopf.on.event(GROUP, VERSION, "modelendpoints")
def modelendpoint_event(memo: Any, namespace: Any, name: str, spec: Any, status: Any, meta: Any, **indices: Any) -> None:
    """A ModelEndpoint changed: jobs whose versions it has wait for it, those that name it, as it may not have taken them up, and the one that owns it."""
    _enqueue(memo, "ModelEndpoint", namespace, name)
    versions = status.get("versions") or ()
    told = [spec.get("candidate") or {}, *(spec.get("adapters") or ()), *versions, *(other for v in versions for other in v.get("others") or ())]
    jobs = {found.get("job") for found in told} | set(indices["waiting"].get((namespace, name), ()))
    jobs |= {o["name"] for o in meta.get("ownerReferences") or [] if o["kind"] == "FineTuneJob"}
    for job in sorted(filter(None, jobs)):
        _enqueue(memo, "FineTuneJob", namespace, job)


def _child_event(memo: Any, namespace: Any, name: str, kind: str, labels: Any, event_type: str | None, spec: Any = None) -> None:
    ref = Ref({"Job": "batch/v1", "Deployment": "apps/v1", "HTTPRoute": names.GATEWAY_API}.get(kind, "v1"), kind, name)
    runtime = cast("Runtime", memo.runtime)
    if runtime.reconciler and event_type == "DELETED":
        runtime.reconciler.applier.forget(namespace, ref)
    elif runtime.reconciler and spec is not None:
        runtime.reconciler.applier.seen(namespace, ref, spec)
    if job := labels.get(names.LABEL_JOB):
        _enqueue(memo, "FineTuneJob", namespace, job)
    if endpoint := labels.get(names.LABEL_ENDPOINT):
        _enqueue(memo, "ModelEndpoint", namespace, endpoint)


@kopf.on.event("batch", "v1", "jobs", labels=OURS)
def job_event(memo: Any, namespace: Any, name: str, labels: Any, type: str | None, **_: Any) -> None:  # noqa: A002  kopf's name
    """A Kubernetes Job of ours changed."""
    _child_event(memo, namespace, name, "Job", labels, type)


@kopf.on.event(*KUEUE, "workloads")
def workload_event(memo: Any, namespace: Any, meta: Any, **_: Any) -> None:
    """A Workload changed."""
    if job := _job_of_workload(meta):
        _enqueue(memo, "FineTuneJob", namespace, job)


@kopf.on.event("v1", "pods", labels=OURS)
def pod_event(memo: Any, namespace: Any, name: str, labels: Any, body: Any, type: str | None, **_: Any) -> None:  # noqa: A002  kopf's name
    """A pod of ours changed."""
    runtime = cast("Runtime", memo.runtime)
    if type == "DELETED" and runtime.reconciler and (job := labels.get(names.LABEL_JOB)):
        runtime.reconciler.children.graves.bury((namespace, job), pod_view(body))
    if type == "DELETED" and runtime.reconciler and labels.get(names.LABEL_STEP) and (endpoint := labels.get(names.LABEL_ENDPOINT)):
        runtime.reconciler.fleet.bury((namespace, endpoint), pod_view(body))
    if type == "ADDED" and runtime.reconciler and (version := labels.get(names.LABEL_VERSION)):
        # ConfigMaps are not watched: a pod that needs the one of its version must not wait for long when somebody has deleted it.
        runtime.reconciler.applier.forget(namespace, Ref("v1", "ConfigMap", version))
    _child_event(memo, namespace, name, "Pod", labels, type)


@kopf.on.event("apps", "v1", "deployments", labels=OURS)
def deployment_event(memo: Any, namespace: Any, name: str, labels: Any, spec: Any, type: str | None, **_: Any) -> None:  # noqa: A002  kopf's name
    """A Deployment of ours changed."""
    _child_event(memo, namespace, name, "Deployment", labels, type, spec)


@kopf.on.event("v1", "services", labels=OURS)
def service_event(memo: Any, namespace: Any, name: str, labels: Any, spec: Any, type: str | None, **_: Any) -> None:  # noqa: A002  kopf's name
    """A Service of ours changed."""
    _child_event(memo, namespace, name, "Service", labels, type, spec)


@kopf.on.event(*ROUTES, "httproutes", labels=OURS)
def route_event(memo: Any, namespace: Any, name: str, labels: Any, spec: Any, type: str | None, **_: Any) -> None:  # noqa: A002  kopf's name
    """An HTTPRoute of ours changed, or a Gateway has said something of it."""
    _child_event(memo, namespace, name, "HTTPRoute", labels, type, spec)
