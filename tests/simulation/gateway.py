"""The Gateway API: whether the cluster has it, and a controller that accepts HTTPRoutes, or refuses them for a while."""

from .api import Api, Key, Raw, deleting, key_of
from .world import World

NOTICED = 30.0  # longest time in seconds until an operator that lacks the kind ends for one that watches it (handlers.LATER_EVERY)


class Gateway:
    """The controller of all Gateways."""

    def __init__(self, world: World, api: Api, slowness: float) -> None:
        """`slowness` is the longest time in seconds that it takes to notice something."""
        self._world, self._api, self._slowness = world, api, slowness
        self._asked: set[Key] = set()
        self.installed = True
        self.refuses = False
        api.listen("HTTPRoute", self._on_route)

    def refuse(self, seconds: float) -> None:
        """A listener takes no routes for so long."""
        self._world.note("gateway", "refuses all routes")
        self.refuses = True
        self._look()
        self._world.after(seconds, self._accept)

    def _accept(self) -> None:
        self._world.note("gateway", "accepts routes again")
        self.refuses = False
        self._look()

    def _look(self) -> None:
        for route in self._api.all("HTTPRoute"):
            self._ask(key_of(route))

    def _on_route(self, change: str, route: Raw, old: Raw | None) -> None:
        if change != "DELETED" and (old is None or old["metadata"]["generation"] != route["metadata"]["generation"]):
            self._ask(key_of(route))

    def _ask(self, key: Key) -> None:
        if key not in self._asked:
            self._asked.add(key)
            self._world.after(self._world.delay(0.01, self._slowness), self._sync, key)

    def _sync(self, key: Key) -> None:
        self._asked.discard(key)
        route = self._api.get("HTTPRoute", key)
        if route is None or deleting(route):
            return
        status, reason = ("False", "NotAllowedByListeners") if self.refuses else ("True", "Accepted")
        condition = {"type": "Accepted", "status": status, "reason": reason, "message": "", "observedGeneration": route["metadata"]["generation"]}
        self._api.update(route, status={"parents": [{"parentRef": ref, "conditions": [condition]} for ref in route["spec"]["parentRefs"]]})
