"""The Kubernetes Jobs and pods of FineTuneJobs: from the caches for every look, from the API server where absence decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from . import names
from .api.meta import Owner
from .graves import Graves
from .kube import Cluster
from .observe import JobView, PodView, job_view, pod_view
from .plan.types import Ref

# A watch that had to start anew never tells of what was deleted meanwhile, so that caches can hold ghosts for ever.
LOOK_EVERY = 300.0  # seconds


class Store(Protocol):
    """Read side of a cache: values by (namespace, name of the owner)."""

    def get(self, key: tuple[str, str], default: Any = ..., /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Offspring:
    """Jobs and pods of one FineTuneJob."""

    jobs: tuple[JobView, ...]
    pods: tuple[PodView, ...]  # with those that are gone, as they were at the end
    live: bool  # as the API server says now


class Children:
    """Looks at Jobs and pods, and remembers which cached ones are not there any more."""

    def __init__(self, cluster: Cluster, jobs: Store, pods: Store, now: Callable[[], float]) -> None:
        self._cluster, self._jobs, self._pods, self._now = cluster, jobs, pods, now
        self.graves = Graves()
        self._looked: dict[str, float] = {}  # by UID of the FineTuneJob
        self._ghosts: dict[str, frozenset[str]] = {}

    async def of(self, owner: Owner) -> Offspring:
        """From the caches; every few minutes from the API server."""
        if self._now() - self._looked.setdefault(owner.uid, self._now()) >= LOOK_EVERY:
            return await self.look(owner)
        jobs, pods = self._cached(owner)
        return self._with_graves(owner, jobs, pods, live=False)

    async def look(self, owner: Owner) -> Offspring:
        """From the API server."""
        cached_jobs, cached_pods = self._cached(owner)
        known = {j.uid for j in cached_jobs} | {p.uid for p in cached_pods} | self._ghosts.get(owner.uid, frozenset())
        mine = f"{names.LABEL_JOB_UID}={owner.uid}"
        jobs = tuple(job_view(raw) for raw in await self._cluster.list(Ref("batch/v1", "Job", ""), owner.namespace, mine))
        pods = tuple(pod_view(raw) for raw in await self._cluster.list(Ref("v1", "Pod", ""), owner.namespace, mine))
        # UIDs never come back: what was cached before these lists and is not in them is gone for good.
        self._ghosts[owner.uid] = frozenset(known - {j.uid for j in jobs} - {p.uid for p in pods})
        self._looked[owner.uid] = self._now()
        return self._with_graves(owner, tuple(j for j in jobs if j.owner_uid == owner.uid), pods, live=True)

    def forget(self, uid: str, key: tuple[str, str]) -> None:
        """Drop a FineTuneJob that is gone."""
        self._looked.pop(uid, None)
        self._ghosts.pop(uid, None)
        self.graves.forget(key)

    def _cached(self, owner: Owner) -> tuple[tuple[JobView, ...], tuple[PodView, ...]]:
        at, ghosts = (owner.namespace, owner.name), self._ghosts.get(owner.uid, frozenset())
        jobs = tuple(j for j in self._jobs.get(at, ()) if j.owner_uid == owner.uid and j.uid not in ghosts)
        pods = tuple(p for p in self._pods.get(at, ()) if p.job_uid == owner.uid and p.uid not in ghosts)
        return jobs, pods

    def _with_graves(self, owner: Owner, jobs: tuple[JobView, ...], pods: tuple[PodView, ...], *, live: bool) -> Offspring:
        here = {p.uid for p in pods}
        gone = (replace(p, gone=True) for p in self.graves.get((owner.namespace, owner.name)) if p.job_uid == owner.uid and p.uid not in here)
        return Offspring(jobs, (*pods, *gone), live)
