"""What must hold of the shares that an HTTPRoute gives to versions: ready, then weight, then everything, then fewer pods."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_operator.names import LABEL_ENDPOINT, LABEL_VERSION

from .api import Api, Raw, controller_of, deleting, key_of
from .invariants import fail
from .process import Process
from .remembered import versions_of
from .rollouts import Rollouts
from .world import World

if TYPE_CHECKING:
    from .faults import Weather


def weights_of(route: Raw | None) -> dict[str, int]:
    """Weights by version; empty without a route."""
    return {b["name"]: b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]} if route else {}


@dataclass(slots=True)
class Steps:
    """What is remembered of one endpoint's route."""

    since: dict[str, float] = field(default_factory=dict)  # when a version came to its share, at the earliest
    given: dict[str, int] = field(default_factory=dict)  # shares by the operator; what others make of them is put right, and is no step
    lost: dict[str, tuple[int, float, float]] = field(default_factory=dict)  # shares that versions had last: how much, since when, and when they lost it


class Shares:
    """Watches HTTPRoutes. What the operator may have seen is judged as Rollouts does."""

    def __init__(self, world: World, api: Api, conditions: "Weather", process: Process, rollouts: Rollouts) -> None:
        self._world, self._api, self._weather, self._process, self._rollouts = world, api, conditions, process, rollouts
        self._steps: dict[str, Steps] = {}
        api.listen("HTTPRoute", self._on_route)
        api.listen("Deployment", self._on_deployment)

    def _on_route(self, change: str, route: Raw, old: Raw | None) -> None:
        if change == "DELETED" or (old is not None and old["spec"] is route["spec"]):
            return
        endpoint = self._api.get("ModelEndpoint", key_of(route))
        owner = controller_of(route)
        if endpoint is None or owner is None or owner["uid"] != endpoint["metadata"]["uid"]:
            return
        weights, before = weights_of(route), weights_of(old)
        self._world.note("route", f"{route['metadata']['name']}: " + " ".join(f"{v[-8:]}={w}" for v, w in weights.items()))
        if not self._process.cluster.acting:
            return
        steps, now = self._steps.setdefault(endpoint["metadata"]["uid"], Steps()), self._world.now
        self._whole(weights)
        self._goes_to(endpoint, weights, before)
        self._lasts(endpoint, weights, steps)
        # Times on record are whole seconds, and a step begins when its record is made, just before the route is written: in the weather of then.
        begun = now - self._process.error() - self._rollouts.moment()
        steps.lost |= {v: (w, steps.since[v], now) for v, w in steps.given.items() if v in steps.since and w and not weights.get(v)}
        # One that has everything while the old version is silent goes on with its step afterwards.
        steps.since = {
            v: steps.since.get(v, begun) if w in (100, steps.given.get(v)) or steps.given.get(v) == 100 else self._again(steps, v, w, begun)
            for v, w in weights.items()
            if w
        }
        steps.given = weights

    def _again(self, steps: Steps, version: str, weight: int, begun: float) -> float:
        """When a step began. One that was lost by a round that ended before that was on record goes on as if it had not been."""
        before, since, lost = steps.lost.get(version, (0, 0.0, 0.0))
        return since if before == weight and self._process.since > lost else begun

    def _whole(self, weights: dict[str, int]) -> None:
        if sum(weights.values()) != 100 or min(weights.values()) < 0:
            fail("shares are whole", f"weights are {weights}")

    def _current(self, endpoint: Raw) -> set[str]:
        """Versions that may have all that no candidate has: the one on record, and the one to which the Service has just been moved."""
        record = {v for v, r in versions_of(endpoint).items() if r["role"] == "Current"}
        return record | {self._rollouts.selected(endpoint)}

    def _goes_to(self, endpoint: Raw, weights: dict[str, int], before: dict[str, int]) -> None:
        current, nobody = self._current(endpoint), any(not spec.get("replicas", 1) for spec in self._rollouts.recent(endpoint))
        for version, weight in weights.items():
            if not weight:
                continue
            self._world.hits.add(f"share {weight}" if weight in (10, 50, 90) else "share")
            alone = weight == 100 and (version in current or nobody)
            if not alone and self._rollouts.silent(version):
                fail("a share goes to what answers", f"{version} has {weight} %, and none of its pods answers")
            if version not in current and not before.get(version):
                self._rollouts.may_have(endpoint, version, next(iter(sorted(current)), ""))

    def _lasts(self, endpoint: Raw, weights: dict[str, int], steps: Steps) -> None:
        """A share grows only when its step is over, unless somebody or the old version's silence ends the steps."""
        specs = self._rollouts.recent(endpoint)
        if any(spec.get("version") or not spec.get("replicas", 1) or spec["strategy"]["type"] != "Canary" for spec in specs):
            return
        current = {v for v, r in versions_of(endpoint).items() if r["role"] == "Current"}
        wavered = any(self._rollouts.wavered(v) or v in self._rollouts.deleted for v in current)
        shortest = min(spec["strategy"]["canary"]["stepSeconds"] for spec in specs)
        for version, weight in weights.items():
            was = steps.given.get(version, 0)
            if version in current or not 0 < was < weight or version not in steps.since or wavered:
                continue
            lasted = self._world.now - steps.since[version]
            if lasted < shortest:
                fail("a step lasts its time", f"{version} goes from {was} to {weight} % after {lasted:.0f} s at most, stepSeconds is {shortest}")

    def _on_deployment(self, change: str, raw: Raw, old: Raw | None) -> None:
        """While a version has a share, the operator takes none of its pods."""
        version = (raw["metadata"].get("labels") or {}).get(LABEL_VERSION)
        if not self._process.cluster.acting or old is None or version is None or not self._rollouts.left_alone():
            return
        at = (raw["metadata"]["namespace"], raw["metadata"]["labels"][LABEL_ENDPOINT])
        endpoint, weight = self._api.get("ModelEndpoint", at), weights_of(self._api.get("HTTPRoute", at)).get(version, 0)
        if endpoint is None or not weight:
            return
        specs = self._rollouts.recent(endpoint)
        if any(spec["strategy"]["type"] != "Canary" for spec in specs):
            return
        left = 0 if change == "DELETED" or deleting(raw) else raw["spec"]["replicas"]
        wanted = min(spec.get("replicas", 1) for spec in specs)
        if left < old["spec"]["replicas"] and left < wanted:
            fail("a version with a share keeps its pods", f"the operator leaves {left} pods of {version}, which has {weight} % of the requests")

    def at_rest(self) -> None:
        """The route says what the record says, and is there only where the strategy needs one."""
        for endpoint in self._api.all("ModelEndpoint"):
            if deleting(endpoint) or endpoint["metadata"]["namespace"] in self._api.terminating:
                continue
            conflict = any(c["reason"] == "NameConflict" for c in endpoint["status"].get("conditions") or ())
            route = next((r for r in self._api.owned(endpoint["metadata"]["uid"], "HTTPRoute") if not deleting(r)), None)
            record = {v: r["weight"] for v, r in versions_of(endpoint).items() if "weight" in r and (r["weight"] or r["role"] != "Candidate")}
            if route and not conflict and endpoint["spec"]["strategy"]["type"] != "Canary":
                fail("a route goes with its strategy", f"HTTPRoute {route['metadata']['name']} is still there")
            if weights_of(route) != record and not conflict:
                fail("the route says what the record says", f"{weights_of(route)} and {record}")
