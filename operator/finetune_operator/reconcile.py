"""One round for one object: observe, decide, act, report."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from . import clock, events, metrics
from .api import API_VERSION
from .api.finetunejob import FineTuneJob
from .api.meta import Condition, ConditionType, Owner
from .api.modelendpoint import ModelEndpoint
from .apply import Applier, Outcome
from .build.endpoint import endpoint_name
from .children import Children, Offspring, Store
from .fleet import Fleet
from .kube import ApiError, Cluster, GoneError, RefusedError, StaleError
from .names import ANNOTATION_IGNORE_FIT, FIELD_MANAGER
from .nodes import Nodes
from .objects import Key, Objects
from .observe import owner_uid
from .plan import endpoint as endpoint_plan
from .plan import job as job_plan
from .plan.status import Conditions, is_final
from .plan.types import EndpointState, EndpointView, JobState, Plan, Ref
from .progress import ProgressStore
from .reasons import Reason
from .routes import Routes
from .settings import Settings
from .sidecars import Sidecars

log = logging.getLogger(__name__)
LOOK_AGAIN = 5.0  # seconds
RESYNC = 300.0  # seconds after which an object that is under way is looked at without a cause


@dataclass(frozen=True, slots=True)
class Caches:
    """What is known of the cluster; filled by the watches."""

    finetunejobs: Store
    modelendpoints: Store
    jobs: Store
    pods: Store
    deployments: Store
    evaluations: Store
    workloads: Store
    routes: Store


def _all(store: Store, namespace: str, name: str) -> tuple[Any, ...]:
    values: Iterable[Any] = store.get((namespace, name), ())
    return tuple(values)


def _owner(kind: str, raw: Mapping[str, Any]) -> Owner:
    meta = raw["metadata"]
    return Owner(kind=kind, namespace=meta["namespace"], name=meta["name"], uid=meta["uid"], generation=meta.get("generation", 0))


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _readable(conditions: Iterable[Mapping[str, Any]]) -> list[Condition]:
    found = []
    for raw in conditions:
        try:
            found.append(Condition.model_validate(raw))
        except ValidationError:
            continue
    return found


class Reconciler:
    """Brings objects to their goal, one round at a time."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        caches: Caches,
        progress: ProgressStore,
        ca: str = "",
        now: Callable[[], float] = time.time,
        sidecars: Sidecars | None = None,
    ) -> None:
        """`now` is the clock in seconds since the epoch."""
        self._cluster, self._settings, self._caches, self._progress, self._ca, self._now = cluster, settings, caches, progress, ca, now
        self.applier = Applier(cluster, now)
        self.children = Children(cluster, caches.jobs, caches.pods, now)
        self._objects = Objects(cluster, caches.finetunejobs, caches.modelendpoints, now)
        self.fleet = Fleet(cluster, caches.deployments, caches.pods, caches.evaluations, now)
        self._routes = Routes(cluster, caches.routes, now)
        self._nodes = Nodes(cluster, now)
        self._sidecars = sidecars or Sidecars()
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One round. Returns the seconds until the next one is due by itself."""
        try:
            return await (self._job(key) if key.kind == "FineTuneJob" else self._endpoint(key))
        except GoneError as error:  # it, a child or the namespace has gone since we looked: look again
            log.info("%s: %s", key, error)
            return LOOK_AGAIN
        except StaleError:  # somebody has changed it since we looked, or it has been made anew: decide on what it is now
            return 0.0

    async def _job(self, key: Key) -> float | None:
        raw = await self._objects.newest(key)
        if raw is None:
            self._forget(key)
            return None
        plan = await self._decide(raw, live=False)
        if plan and plan[1].look:
            raw = await self._objects.read(key)
            plan = await self._decide(raw, live=True) if raw else None
        if raw is None or plan is None:
            return None
        state, decided = plan

        def again(out: Outcome) -> Plan:
            return job_plan.decide(replace(state, conflicts=tuple(out.conflicts), refused=out.refused), self._settings, self._now())

        decided = await self._carry_out(decided, state.owner, again)
        await self._report(key, state.owner, raw, state.status.conditions, decided)
        await self.applier.execute(Plan(delete=decided.delete, expire=decided.expire), state.owner)
        return decided.requeue_after if is_final(state.status.conditions) else min(decided.requeue_after or RESYNC, RESYNC)

    async def _carry_out(self, plan: Plan, owner: Owner, again: Callable[[Outcome], Plan]) -> Plan:
        """Do what a plan says, up to what goes by it; `again` decides by what could not be made, and the rest of that is done. Returns the plan that holds.

        What ends, and where the traffic is, has to be on record before anything goes: what goes follows from the record, also in a later round.
        """
        outcome = await self.applier.execute(replace(plan, delete=(), expire=False), owner)
        if outcome.whole:
            return plan
        decided = again(outcome)
        await self.applier.execute(replace(outcome.without(decided), delete=(), expire=False), owner)
        return decided

    def _forget(self, key: Key) -> None:
        self._progress.forget((key.namespace, key.name))
        self.children.forget(self._uids.pop(key, ""), (key.namespace, key.name))

    async def _decide(self, raw: Mapping[str, Any], *, live: bool) -> tuple[JobState, Plan] | None:
        """What to do about a FineTuneJob; `live`: by what the API server says now. None when it cannot be read."""
        owner = _owner("FineTuneJob", raw)
        key = Key(owner.kind, owner.namespace, owner.name)
        if self._uids.get(key, owner.uid) != owner.uid:
            self._forget(key)  # what is known of a predecessor of the same name is not about this one
        self._uids[key] = owner.uid
        try:
            job = FineTuneJob.model_validate(raw)
        except ValidationError as error:
            await self._refuse(owner, raw, error)
            return None
        children = await (self.children.look(owner) if live else self.children.of(owner))
        state = await self._observe(owner, raw, job, children)
        return state, job_plan.decide(state, self._settings, self._now())

    async def _observe(self, owner: Owner, raw: Mapping[str, Any], job: FineTuneJob, children: Offspring) -> JobState:
        at, uids = (owner.namespace, owner.name), {j.uid for j in children.jobs}
        asks = job_plan.asks_for_nodes(job.spec, job.status, children.jobs)
        endpoint, endpoint_fault = await self._endpoint_of(owner, job, live=children.live)
        return JobState(
            owner=owner,
            spec=job.spec,
            status=job.status,
            jobs=children.jobs,
            pods=children.pods,
            live=children.live,
            workloads=tuple(w for w in _all(self._caches.workloads, *at) if w.job_uid in uids),
            nodes=await self._nodes.offering(job.spec.resources.gpu_resource) if asks else None,
            ignore_fit=(raw["metadata"].get("annotations") or {}).get(ANNOTATION_IGNORE_FIT) == "true",
            endpoint=endpoint,
            endpoint_fault=endpoint_fault,
            progress=self._progress.latest(at, owner.uid, self._now()),
            ca=self._ca,
        )

    async def _endpoint_of(self, owner: Owner, job: FineTuneJob, *, live: bool) -> tuple[EndpointView | None, str]:
        """The endpoint that the job deploys to, or why it cannot be read, which holds up nothing before the job needs it."""
        if job.spec.inference is None:
            return None, ""
        key = Key("ModelEndpoint", owner.namespace, endpoint_name(owner, job.spec.inference))
        raw = await (self._objects.read(key) if live else self._objects.newest(key))
        if raw is None:
            return None, ""
        try:
            found = ModelEndpoint.model_validate(raw)
        except ValidationError as error:
            return None, f"ModelEndpoint {key.name} cannot be read ({_first(error)})"
        return EndpointView(owner_uid=owner_uid(raw), spec=found.spec, status=found.status), ""

    async def _endpoint(self, key: Key) -> float | None:
        raw = await self._objects.newest(key)
        if raw is None:
            uid = self._uids.pop(key, "")
            self.fleet.forget(uid, (key.namespace, key.name))
            self._routes.forget(uid)
            return None
        plan = await self._decide_endpoint(raw, live=False)
        if plan and plan[1].look:
            raw = await self._objects.read(key)
            plan = await self._decide_endpoint(raw, live=True) if raw else None
        if raw is None or plan is None:
            return None
        state, decided = plan

        def again(out: Outcome) -> Plan:
            # What is decided otherwise now follows from what the API server has just said: it need not be looked at once more.
            told = replace(state, conflicts=tuple(out.conflicts), refused=out.refused, route_fault=out.route, budget_fault=out.budget, live=True)
            return endpoint_plan.decide(told, self._settings, self._now())

        try:
            decided = await self._carry_out(decided, state.owner, again)
        except RefusedError as error:  # of what users depend on: where the traffic is stays on record as it was
            decided = endpoint_plan.decide(replace(state, blocked=error.message), self._settings, self._now())
        await self._report(key, state.owner, raw, state.status.conditions, decided)
        await self.applier.execute(Plan(delete=decided.delete), state.owner)
        return min(decided.requeue_after or RESYNC, RESYNC)

    async def _decide_endpoint(self, raw: Mapping[str, Any], *, live: bool) -> tuple[EndpointState, Plan] | None:
        """What to do about a ModelEndpoint; `live`: by what the API server says now. None when it cannot be read."""
        owner = _owner("ModelEndpoint", raw)
        self._uids[Key(owner.kind, owner.namespace, owner.name)] = owner.uid
        try:
            found = ModelEndpoint.model_validate(raw)
        except ValidationError as error:
            await self._refuse(owner, raw, error)
            return None
        crew = await (self.fleet.look(owner) if live else self.fleet.of(owner))
        routing = await self._routes.of(owner, found.spec, live=crew.live)
        state = EndpointState(owner, found.spec, found.status, crew.deployments, crew.pods, crew.jobs, routing.route, routing.installed, crew.live)
        state = replace(state, reports=await self._sidecars.of(state))
        return state, endpoint_plan.decide(state, self._settings, self._now())

    async def _refuse(self, owner: Owner, raw: Mapping[str, Any], error: ValidationError) -> None:
        """A spec that this version cannot read, for example because the CRD is newer."""
        known: Mapping[str, Any] = raw.get("status") or {}
        before = _readable(known.get("conditions", ()))
        conditions = Conditions(before, owner.generation, clock.text(self._now()))
        conditions.set(ConditionType.ACCEPTED, "False", Reason.INVALID_SPEC, f"{_first(error)}; does the CRD belong to this operator's version?")
        # Whatever else was recorded stays: it is not ours to forget because this version cannot read the spec.
        status = {**known, "reason": Reason.INVALID_SPEC, "conditions": [c.dump() for c in conditions.all()]}
        await self._report(Key(owner.kind, owner.namespace, owner.name), owner, raw, before, Plan(status={"phase": "Pending", **status}))

    async def _report(self, key: Key, owner: Owner, raw: Mapping[str, Any], before: list[Condition], plan: Plan) -> None:
        """Write the status once, last, and only when it differs; then tell what changed."""
        if plan.status == (raw.get("status") or {}):
            return
        ref = Ref(API_VERSION, key.kind, key.name)
        try:
            self._objects.learn(key, await self._cluster.apply_status(ref, key.namespace, raw["metadata"]["resourceVersion"], plan.status, FIELD_MANAGER))
        except GoneError:
            self._objects.unsure(key)  # the watch has yet to tell: the next round asks
            return
        except ApiError:  # an answer that is lost does not mean that nothing was written
            self._objects.unsure(key)
            raise
        metrics.status_writes.labels(kind=key.kind).inc()
        after = [Condition.model_validate(c) for c in plan.status.get("conditions", [])]
        for item in events.news(before, after):
            log.info("%s: %s: %s", key, item.reason, item.message)
            try:
                await self._cluster.create(events.event(owner, item, clock.text(self._now())))
            except GoneError:
                return
            except ApiError as error:  # an event that cannot be posted must not hold the work up
                log.warning("%s: event %s not posted: %s", key, item.reason, error)
