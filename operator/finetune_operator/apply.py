"""Carries out plans: the only place that changes objects other than by their status."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import names
from .api import API_VERSION
from .api.meta import Owner
from .build.endpoint import proposed_name
from .kube import AlreadyExistsError, Cluster, GoneError, RefusedError, ref_of
from .observe import controller
from .plan.faults import Fault
from .plan.types import Body, Plan, Ref
from .reasons import Reason

# An object applied with the same content is left alone for so long (seconds); then edits by others are put right.
TRUST = 300.0
_PUT_RIGHT_AT_ONCE = {"Service": ("selector",), "Deployment": ("replicas",), "HTTPRoute": ("rules", "parentRefs", "hostnames")}


@dataclass(slots=True)
class Outcome:
    """Children that could not be made: those whose names belong to somebody else, and what the API server has against others, by their names."""

    conflicts: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    route: Fault | None = None  # why the HTTPRoute is not as it is to be, which holds up nothing but steps through a Gateway
    budget: str = ""  # what the API server has against the PodDisruptionBudget, which holds up nothing

    @property
    def whole(self) -> bool:
        """Whether everything was carried out."""
        return not (self.conflicts or self.refused or self.route or self.budget)

    def without(self, plan: Plan) -> Plan:
        """What is left of a plan without all that could not be made."""

        def possible(bodies: tuple[Body, ...]) -> tuple[Body, ...]:
            out = {kind for kind, fault in (("HTTPRoute", self.route), ("PodDisruptionBudget", self.budget)) if fault}
            return tuple(b for b in bodies if b["metadata"]["name"] not in self.refused and b["kind"] not in out)

        return replace(plan, apply=possible(plan.apply), create=possible(plan.create), propose=possible(plan.propose))


class Applier:
    """Carries out plans in one cluster."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._cluster, self._clock = cluster, clock
        self._applied: dict[tuple[str, Ref], tuple[Body, float]] = {}

    def forget(self, namespace: str, ref: Ref) -> None:
        """An object was deleted or edited by somebody: apply it again next time."""
        self._applied.pop((namespace, ref), None)

    def seen(self, namespace: str, ref: Ref, spec: Mapping[str, Any]) -> None:
        """An object was changed, perhaps by somebody else: what decides who answers is put right at once."""
        known = self._applied.get((namespace, ref))
        if known and any(spec.get(field) != known[0]["spec"].get(field) for field in _PUT_RIGHT_AT_ONCE.get(ref.kind, ())):
            self.forget(namespace, ref)

    async def execute(self, plan: Plan, owner: Owner) -> Outcome:
        """Apply, patch, create, propose, delete, in this order.

        Objects are looked at before the first write, so that nothing of anyone else is touched. What nobody depends on yet comes first: where that is
        refused, nothing else is done for it. Raises RefusedError for an object that others depend on.
        """
        namespace, uid = owner.namespace, owner.uid
        outcome = Outcome()
        conflicts = outcome.conflicts
        await self._make(plan, owner, outcome)
        if not outcome.whole:  # what is decided by that is done instead
            return outcome
        for ref, change in plan.patch:
            await self._cluster.patch(ref, namespace, change)
        for body in plan.create:
            await self._try(self._create(body, owner, conflicts), body, plan, outcome)
        for body in plan.propose:
            await self._try(self._cluster.apply(body, names.candidate_manager(proposed_name(body))), body, plan, outcome)
        for ref in plan.delete:
            self.forget(namespace, ref)
            await self._cluster.delete(ref, namespace, ref.uid)
        if plan.expire:
            await self._cluster.delete(Ref(API_VERSION, owner.kind, owner.name), namespace, uid)
        return outcome

    async def _make(self, plan: Plan, owner: Owner, outcome: Outcome) -> None:
        """Apply objects, those that nobody depends on first, and go no further where one of them, or the way of traffic, is not as it is to be.

        What goes with a refused object has its name, and is found by it later: it is not made without that.
        """
        namespace = owner.namespace
        due = [(body, found) for body in plan.apply if not self._known(namespace, body) and (found := await self._look(body, owner, outcome)) is not None]
        for body, found in sorted(due, key=lambda one: one[0]["metadata"]["name"] not in plan.untried):
            standing = body["metadata"]["name"] not in plan.untried
            if outcome.conflicts or (standing and (outcome.refused or outcome.route)):
                return
            if body["metadata"]["name"] not in outcome.refused:
                await self._try(self._apply(body, namespace, found), body, plan, outcome)

    @staticmethod
    async def _try(request: Awaitable[object], body: Body, plan: Plan, outcome: Outcome) -> None:
        """Make a request for an object, and note that it is refused where nobody depends on it yet."""
        try:
            await request
        except RefusedError as error:
            name = body["metadata"]["name"]
            words = f"{body['kind']} {name}: {error.message}"
            if body["kind"] == "HTTPRoute":
                outcome.route = Fault(Reason.ROUTE_REFUSED, f"the API server refuses {words}")
            elif body["kind"] == "PodDisruptionBudget":
                outcome.budget = words
            elif name in plan.untried:
                outcome.refused.setdefault(name, words)
            else:
                raise RefusedError(error.status, words) from error

    def _known(self, namespace: str, body: Body) -> bool:
        """Whether an object was applied like this not long ago."""
        known, since = self._applied.get((namespace, ref_of(body)), ({}, 0.0))
        return known == body and 0 <= self._clock() - since < TRUST

    async def _look(self, body: Body, owner: Owner, outcome: Outcome) -> Body | None:
        """The object as it is, empty when there is none; None when it is somebody else's, which is noted."""
        found, conflicts = await self._cluster.get(ref_of(body), owner.namespace), list[str]()
        if self._is_ours(body, found, owner, conflicts):
            return found or {}
        if body["kind"] == "HTTPRoute":
            outcome.route = Fault(Reason.NAME_CONFLICT, f"{conflicts[0]} exists and belongs to somebody else: delete or rename it")
        else:
            outcome.conflicts += conflicts
        return None

    async def _create(self, body: Body, owner: Owner, conflicts: list[str]) -> None:
        try:
            await self._cluster.create(body)
        except AlreadyExistsError:
            self._is_ours(body, await self._cluster.get(ref_of(body), owner.namespace), owner, conflicts)

    async def _apply(self, body: Body, namespace: str, found: Body) -> None:
        # With its UID: what was deleted and made anew by somebody since we looked is not written to.
        exactly = {"uid": found["metadata"]["uid"]} if found else {}
        await self._cluster.apply({**body, "metadata": {**body["metadata"], **exactly}}, names.FIELD_MANAGER)
        now = self._clock()
        self._applied = {key: entry for key, entry in self._applied.items() if 0 <= now - entry[1] < TRUST}  # also of jobs that are gone
        self._applied[namespace, ref_of(body)] = (body, now)

    @staticmethod
    def _is_ours(body: Body, found: Body | None, owner: Owner, conflicts: list[str]) -> bool:
        """Whether an object is ours or missing; else it is noted as a conflict. Raises GoneError for one that goes with a predecessor of our owner.

        An object without any controller counts as ours only where we would make one without: a named endpoint.
        """
        expected = owner.uid if body["metadata"].get("ownerReferences") else ""
        holder = controller(found or {})
        if found is None or holder.get("uid", "") == expected:
            return True
        name = f"{body['kind']} {body['metadata']['name']}"
        if (holder.get("apiVersion"), holder.get("kind"), holder.get("name")) == (API_VERSION, owner.kind, owner.name):
            raise GoneError(409, f"{name} still goes with the {owner.kind} of this name that was deleted before; if it never does, look at its finalizers")
        conflicts.append(name)
        return False
