"""The Deployment controller, as far as an endpoint sees it: replicas that become ready after a while, or do not."""

from .api import Api, Raw, key_of
from .world import World


class Deployments:
    """Makes Deployments ready. `broken`: new versions never answer."""

    def __init__(self, world: World, api: Api) -> None:
        self._world, self._api = world, api
        self.broken = False
        self.ever_ready: set[str] = set()  # names of versions
        api.listen("Deployment", self._on_deployment)

    def mend(self) -> None:
        """New versions answer again."""
        self.broken = False
        for raw in self._api.all("Deployment"):
            self._later(raw)

    def _on_deployment(self, change: str, raw: Raw, old: Raw | None) -> None:
        if change == "ADDED" or (old and old["spec"] != raw["spec"]):
            self._later(raw)

    def _later(self, raw: Raw) -> None:
        self._world.after(self._world.delay(5, 120), self._settle, raw)

    def _settle(self, raw: Raw) -> None:
        found = self._api.get("Deployment", key_of(raw))
        if found is None or found["metadata"]["uid"] != raw["metadata"]["uid"]:
            return
        wanted = found["spec"].get("replicas", 1)
        status = {"observedGeneration": found["metadata"]["generation"], "replicas": wanted, "readyReplicas": 0 if self.broken else wanted}
        if not self.broken:
            self.ever_ready.add(found["metadata"]["name"])
        self._api.update(found, status=status)
