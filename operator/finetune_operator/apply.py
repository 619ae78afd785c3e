"""Carries out plans: the only place that changes objects other than by their status."""

import hashlib
import json
import time
from collections.abc import Callable

from . import names
from .api import API_VERSION
from .api.meta import Owner
from .kube import AlreadyExistsError, Cluster, ref_of
from .observe import job_view, owner_uid, pod_view
from .plan.types import Body, Plan, Ref

# An object applied with the same content is left alone for so long (seconds); then edits by others are put right.
TRUST = 300.0


class StillBusyError(Exception):
    """A job is worked on by somebody whom our caches did not show."""


class Applier:
    """Carries out plans in one cluster."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._cluster, self._clock = cluster, clock
        self._applied: dict[tuple[str, Ref], tuple[str, float]] = {}

    def forget(self, namespace: str, ref: Ref) -> None:
        """An object was deleted or edited by somebody: apply it again next time."""
        self._applied.pop((namespace, ref), None)

    async def execute(self, plan: Plan, owner: Owner) -> list[str]:
        """Apply, patch, create, propose, delete, in this order. Returns children whose names belong to somebody else.

        Objects are looked at before the first write, so that nothing of anyone else is touched.
        """
        namespace, uid = owner.namespace, owner.uid
        conflicts: list[str] = []
        for body in plan.apply:
            await self._apply(body, namespace, uid, conflicts)
        for ref, change in plan.patch:
            await self._cluster.patch(ref, namespace, change)
        if conflicts:
            return conflicts
        for body in plan.create:
            if body["kind"] == "Job":
                await self._check_alone(body, namespace, uid)
            try:
                await self._cluster.create(body)
            except AlreadyExistsError:
                await self._check_owner(body, namespace, uid, conflicts)
        for body in plan.propose:
            await self._cluster.apply(body, names.CANDIDATE_MANAGER)
        for ref in plan.delete:
            await self._cluster.delete(ref, namespace)
        if plan.expire:
            await self._cluster.delete(Ref(API_VERSION, owner.kind, owner.name), namespace, uid)
        return conflicts

    async def _check_alone(self, body: Body, namespace: str, uid: str) -> None:
        """Nothing else may work on a job when a Job of it is made. Asked of the API server itself, because caches may be behind.

        Raises StillBusyError; the round is tried again.
        """
        name, mine = body["metadata"]["name"], f"{names.LABEL_JOB_UID}={uid}"
        jobs = [job_view(raw) for raw in await self._cluster.list(Ref("batch/v1", "Job", ""), namespace, mine)]
        if any(job.name == name and not job.deleting for job in jobs):
            return  # made before, by us; nothing will come of making it again
        for job in jobs:
            if job.live:
                raise StillBusyError(f"Kubernetes Job {job.name} is still under way")
        for raw in await self._cluster.list(Ref("v1", "Pod", ""), namespace, mine):
            if (pod := pod_view(raw)).alive:
                raise StillBusyError(f"pod {pod.name} has not ended yet")

    async def _apply(self, body: Body, namespace: str, uid: str, conflicts: list[str]) -> None:
        ref = ref_of(body)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        known, since = self._applied.get((namespace, ref), ("", 0.0))
        if known == digest and 0 <= self._clock() - since < TRUST:
            return
        if await self._check_owner(body, namespace, uid, conflicts):
            await self._cluster.apply(body, names.FIELD_MANAGER)
            self._applied[namespace, ref] = (digest, self._clock())

    async def _check_owner(self, body: Body, namespace: str, uid: str, conflicts: list[str]) -> bool:
        """Whether an object is ours or missing; else it is noted as a conflict.

        An object without any controller counts as ours only where we would make one without: a named endpoint.
        """
        found = await self._cluster.get(ref_of(body), namespace)
        if found is None:
            return True
        expected = uid if body["metadata"].get("ownerReferences") else ""
        if owner_uid(found) == expected:
            return True
        conflicts.append(f"{body['kind']} {body['metadata']['name']}")
        return False
