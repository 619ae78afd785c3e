"""The HTTPRoutes of ModelEndpoints, and whether the cluster has the Gateway API at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import names
from .api.meta import Owner
from .api.modelendpoint import ModelEndpointSpec
from .children import Store
from .kube import Cluster
from .observe import RouteView, route_view
from .plan.types import Ref

KEPT = 30.0  # seconds for which the answer to what kinds there are is believed


@dataclass(frozen=True, slots=True)
class Routing:
    """What an endpoint has of the Gateway API."""

    route: RouteView | None
    installed: bool  # the API server knows HTTPRoutes


class Routes:
    """Looks at HTTPRoutes where an endpoint's strategy needs one, or one is left of a strategy that did."""

    def __init__(self, cluster: Cluster, routes: Store, now: Callable[[], float]) -> None:
        self._cluster, self._routes, self._now = cluster, routes, now
        self._installed, self._asked = False, float("-inf")
        self._ghosts: dict[str, frozenset[str]] = {}  # UIDs of cached ones that are gone, by UID of the endpoint

    async def of(self, owner: Owner, spec: ModelEndpointSpec, *, live: bool) -> Routing:
        """From the cache; `live`: as the API server says now."""
        cached = self._cached(owner)
        if spec.strategy.type != "Canary" and not cached:
            return Routing(None, installed=True)
        if not await self._is_installed():
            return Routing(None, installed=False)
        if not live:
            return Routing(next((r for r in cached if r.owner_uid == owner.uid), None), installed=True)
        raw = await self._cluster.get(Ref(names.GATEWAY_API, "HTTPRoute", owner.name), owner.namespace)
        found = route_view(raw) if raw and "deletionTimestamp" not in raw["metadata"] else None
        # UIDs never come back: what was cached and is not there is gone for good, also where no watch tells so.
        gone = {r.uid for r in cached} - ({found.uid} if found else set())
        self._ghosts[owner.uid] = self._ghosts.get(owner.uid, frozenset()) | gone
        return Routing(found if found and found.owner_uid == owner.uid else None, installed=True)

    def forget(self, uid: str) -> None:
        """Drop an endpoint that is gone."""
        self._ghosts.pop(uid, None)

    def _cached(self, owner: Owner) -> Sequence[RouteView]:
        ghosts = self._ghosts.get(owner.uid, frozenset())
        return [r for r in self._routes.get((owner.namespace, owner.name), ()) if r.uid not in ghosts]

    async def _is_installed(self) -> bool:
        if not 0 <= self._now() - self._asked < KEPT:
            self._installed, self._asked = await self._cluster.serves(names.GATEWAY_API, "httproutes"), self._now()
        return self._installed
