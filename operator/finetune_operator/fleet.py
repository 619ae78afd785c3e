"""The Deployments, pods and evaluations of ModelEndpoints: from the caches for every look, from the API server before traffic moves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import names
from .api.meta import Owner
from .children import LOOK_EVERY, Store
from .graves import Graves
from .kube import Cluster
from .observe import DeploymentView, JobView, PodView, deployment_view, job_view, pod_view
from .plan.types import Ref


@dataclass(frozen=True, slots=True)
class Crew:
    """What belongs to one endpoint."""

    deployments: tuple[DeploymentView, ...]
    pods: tuple[PodView, ...]  # with those of merges and evaluations that are gone, as they were at the end
    jobs: tuple[JobView, ...]  # evaluations
    live: bool  # as the API server says now


class Fleet:
    """Looks at what endpoints are made of, and remembers which cached objects are not there any more (see children.LOOK_EVERY)."""

    def __init__(self, cluster: Cluster, deployments: Store, pods: Store, evaluations: Store, now: Callable[[], float]) -> None:
        self._cluster, self._now = cluster, now
        self._stores = (deployments, pods, evaluations)
        self._looked: dict[str, float] = {}  # by UID of the endpoint
        self._ghosts: dict[str, frozenset[str]] = {}
        self._graves = Graves()

    def bury(self, key: tuple[str, str], pod: PodView) -> None:
        """A pod of a merge or an evaluation was deleted; `key` is (namespace, name) of the endpoint, `pod` what it was at the end."""
        self._graves.bury(key, replace(pod, gone=True, gone_at=self._now()))

    async def of(self, owner: Owner) -> Crew:
        """From the caches; every few minutes from the API server."""
        if self._now() - self._looked.setdefault(owner.uid, self._now()) >= LOOK_EVERY:
            return await self.look(owner)
        ghosts = self._ghosts.get(owner.uid, frozenset())
        deployments, pods, jobs = (tuple(v for v in found if v.uid not in ghosts) for found in self._cached(owner))
        return Crew(deployments, self._with_graves(owner, pods), jobs, live=False)

    async def look(self, owner: Owner) -> Crew:
        """From the API server."""
        known = {view.uid for found in self._cached(owner) for view in found}
        mine, at = f"{names.LABEL_ENDPOINT}={owner.name},{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}", owner.namespace
        deployments = tuple(deployment_view(raw) for raw in await self._cluster.list(Ref("apps/v1", "Deployment", ""), at, mine))
        pods = tuple(pod_view(raw) for raw in await self._cluster.list(Ref("v1", "Pod", ""), at, mine))
        jobs = tuple(job_view(raw) for raw in await self._cluster.list(Ref("batch/v1", "Job", ""), at, mine))
        self._ghosts[owner.uid] = frozenset((known | self._ghosts.get(owner.uid, frozenset())) - {v.uid for found in (deployments, pods, jobs) for v in found})
        self._looked[owner.uid] = self._now()
        return Crew(deployments, self._with_graves(owner, pods), jobs, live=True)

    def _with_graves(self, owner: Owner, pods: tuple[PodView, ...]) -> tuple[PodView, ...]:
        here = {p.uid for p in pods}
        return (*pods, *(p for p in self._graves.get((owner.namespace, owner.name)) if p.uid not in here))

    def forget(self, uid: str, key: tuple[str, str]) -> None:
        """Drop an endpoint that is gone."""
        self._graves.forget(key)
        self._looked.pop(uid, None)
        self._ghosts.pop(uid, None)

    def _cached(self, owner: Owner) -> tuple[tuple[Any, ...], ...]:
        return tuple(tuple(store.get((owner.namespace, owner.name), ())) for store in self._stores)
