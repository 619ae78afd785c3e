"""The operator's API client in the simulation: the same verbs, carried out on the model, with the errors of a real one."""

import types
from collections.abc import Callable, Generator
from typing import NoReturn, TypeVar

from finetune_operator import clock
from finetune_operator.kube import ApiError, Cluster, GoneError, RefusedError
from finetune_operator.plan.types import Body, Ref

from .adapters import wanted
from .api import Api, controller_of, key_of
from .faults import Fate, Requests, Weather
from .gateway import Gateway
from .kueue import queued
from .world import ViolationError, World

T = TypeVar("T")


class Crash(BaseException):
    """The operator's process ends here. No Exception: nothing in it could handle this."""


@types.coroutine
def _pause(seconds: float) -> Generator[float, None, None]:
    """Hand over to the simulation, which goes on with the coroutine after so many seconds."""
    yield seconds


class ModelCluster(Cluster):
    """Cluster without a network. `writes` counts requests that ask for a change."""

    def __init__(self, world: World, api: Api, conditions: Weather, requests: Requests) -> None:
        self._world, self._api, self._weather, self._requests = world, api, conditions, requests
        self.gateway: Gateway
        self._looked: dict[tuple[str, str, str], str] = {}  # UID that the last look at an object has found
        self.writes = 0
        self.acting = False  # what happens now is the operator's doing
        self.policies: set[str] = set()  # kinds that an admission policy takes none of

    async def _ask(self, what: str, do: Callable[[], T], *, write: bool) -> T:
        if "HTTPRoute" in what and not self.gateway.installed:
            raise ViolationError("only kinds that the cluster has are asked for", f"{what}, and there is no Gateway API")
        self.writes += write
        fate = self._requests.next()
        if self._weather.latency:
            await _pause(self._world.delay(0.0, self._weather.latency))
        if fate is Fate.FINE:
            try:
                answer = self._act(do)
            except ApiError as error:
                self._world.note("operator", f"{what}: {error.status}")
                raise
            if self._world.trace is not None and write:
                self._world.note("operator", what)
        else:
            self._failing(what, do, fate)
        if self._weather.latency:
            await _pause(self._world.delay(0.0, self._weather.latency))
        return answer

    def _act(self, do: Callable[[], T]) -> T:
        self.acting = True
        try:
            return do()
        finally:
            self.acting = False

    def _failing(self, what: str, do: Callable[[], T], fate: Fate) -> NoReturn:
        self._world.hits.add(f"fault {fate.name.lower()}")
        if fate is Fate.CRASH_BEFORE:
            self._world.note("operator", f"crashes before {what}")
            raise Crash
        if fate is Fate.REFUSED:
            status = self._requests.status()
            self._world.note("operator", f"{what}: refused with {status}")
            raise ApiError(status, "not now")
        self._act(do)
        if fate is Fate.CRASH_AFTER:
            self._world.note("operator", f"crashes after {what}")
            raise Crash
        self._world.note("operator", f"{what}: done, but the answer is lost")
        raise ApiError(self._requests.status(), "the answer is lost")

    async def serves(self, api_version: str, plural: str) -> bool:
        return await self._ask(f"look for {plural} of {api_version}", lambda: self.gateway.installed, write=False)

    async def get(self, ref: Ref, namespace: str) -> Body | None:
        def do() -> Body | None:
            found = self._api.get(ref.kind, (namespace, ref.name))
            self._looked[ref.kind, namespace, ref.name] = found["metadata"]["uid"] if found else ""
            return found

        return await self._ask(f"get {ref.kind} {ref.name}", do, write=False)

    async def list(self, ref: Ref, namespace: str | None, selector: str) -> list[Body]:
        return await self._ask(f"list {ref.kind}", lambda: self._api.select(ref.kind, namespace, selector), write=False)

    async def create(self, body: Body) -> Body:
        what = f"create {body['kind']} {body['metadata']['name'] if body['kind'] != 'Event' else body['reason']}"
        if body["kind"] == "Event":
            return await self._ask(what, lambda: body, write=False)

        def do() -> Body:
            self._admit(body)
            return self._api.create(body)

        return await self._ask(what, do, write=True)

    async def apply(self, body: Body, manager: str) -> Body:
        if body["kind"] == "Job":
            raise ViolationError("a Job is made once", f"Job {body['metadata']['name']} is applied again, which would undo what Kueue changed")

        def do() -> Body:
            self._admit(body)
            unheard_of = self._unheard_of(body)
            if body["metadata"].get("ownerReferences") and not unheard_of:
                self._ours(body["kind"], key_of(body), "applies")
            if unheard_of and (found := self._api.get(body["kind"], key_of(body))):
                self._api.taken_over.add(found["metadata"]["uid"])
            return self._propose(body, manager) if body["kind"] == "ModelEndpoint" else self._api.apply(body)

        return await self._ask(f"apply {body['kind']} {body['metadata']['name']}", do, write=True)

    async def apply_status(self, ref: Ref, namespace: str, resource_version: str, status: Body, manager: str) -> Body:  # noqa: ARG002  fields have one owner here
        what = f"status {ref.kind} {ref.name} {status.get('phase', '')} {status.get('reason', '')}"
        return await self._ask(what, lambda: self._api.apply_status(ref.kind, (namespace, ref.name), resource_version, status), write=True)

    async def patch(self, ref: Ref, namespace: str, body: Body) -> None:
        try:
            await self._ask(f"patch {ref.kind} {ref.name} {body}", lambda: self._patch(ref.kind, (namespace, ref.name), body), write=True)
        except GoneError:
            return

    async def delete(self, ref: Ref, namespace: str, uid: str = "") -> None:
        def do() -> None:
            found = self._api.get(ref.kind, (namespace, ref.name))
            if found and uid in {"", found["metadata"]["uid"]}:
                if ref.kind != "FineTuneJob":
                    self._ours(ref.kind, (namespace, ref.name), "deletes")
                self._api.delete(ref.kind, (namespace, ref.name))

        await self._ask(f"delete {ref.kind} {ref.name}", do, write=True)

    def _admit(self, body: Body) -> None:
        if body["kind"] in self.policies:
            self._world.hits.add(f"refused {body['kind']}")
            raise RefusedError(403, f"a policy takes no {body['kind']}")

    def _propose(self, body: Body, manager: str) -> Body:
        standing = wanted((self._api.get(body["kind"], key_of(body)) or {"spec": {}})["spec"])
        found = self._api.propose(body, manager)
        if lost := standing.keys() - wanted(found["spec"]).keys():
            raise ViolationError("a proposal leaves the others alone", f"that of {manager} takes those under {', '.join(sorted(lost)) or 'no name'} away")
        return found

    def _ours(self, kind: str, key: tuple[str, str], what: str) -> None:
        """What people made by themselves is none of the operator's business."""
        found = self._api.get(kind, key)
        unseen = found and self._world.now - clock.seconds(found["metadata"]["creationTimestamp"]) < 2 + 10 * self._weather.latency
        if found and not controller_of(found) and not unseen:
            raise ViolationError("foreign objects are left alone", f"the operator {what} {kind} {key[1]}, which it did not make")

    def _unheard_of(self, body: Body) -> bool:
        """Whether an object came after the last look: an apply with the UID that was seen is refused, and one of what was not there has no precondition."""
        found, looked = self._api.get(body["kind"], key_of(body)), self._looked.get((body["kind"], *key_of(body)))
        return found is not None and (looked == "" or body["metadata"].get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"])

    def _patch(self, kind: str, key: tuple[str, str], body: Body) -> None:
        found = self._api.get(kind, key)
        if found is None:
            raise GoneError(404, f"{kind} {key[1]} not found")
        self._ours(kind, key, "patches")
        if kind == "Job" and queued(found) and "suspend" in body.get("spec", {}):
            raise ViolationError("spec.suspend of a queued Job is Kueue's", f"the operator sets that of {key[1]}")
        meta = body.get("metadata", {})
        merged = {
            section: {k: v for k, v in {**(found["metadata"].get(section) or {}), **meta[section]}.items() if v is not None}
            for section in ("labels", "annotations")
            if section in meta
        }
        self._api.update(found, spec=body.get("spec"), meta=merged or None)
