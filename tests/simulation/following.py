"""Adapters that come into running engines and go: what a pod's sidecar does, and what it says to the operator."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from finetune_operator.plan.live import asks
from finetune_operator.plan.types import EndpointState
from finetune_operator.sidecars import Sidecars
from finetune_runtime.contract.config import AdapterReport, AdapterState

from .adapters import mounted, told_of
from .world import World

if TYPE_CHECKING:
    from .faults import Weather
    from .kubelet import Kubelets
    from .serving import Server

NOTED, BY_ITSELF = 3.0, 90.0  # seconds until a kubelet looks at a ConfigMap: after a note on the pod, and without


class Following:
    """The sidecar of one serving pod, from a start of its engine to its end."""

    def __init__(self, server: "Server", text: str) -> None:
        self._server, self._world = server, server.servers.world
        self.wanted, self._public = told_of(text), mounted(text).models
        self.served: dict[str, str] = {}
        self._refused: set[str] = set()
        self._loading: set[tuple[str, str]] = set()
        self._up = False

    def began(self) -> None:
        """The engine answers, without any adapter."""
        self._up = True
        self._go()

    def look(self, within: float) -> None:
        """The kubelet brings what the ConfigMap says by now."""
        self._after(self._world.delay(0.1, within), self._read)

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._world.after(seconds, lambda: None if self._server.ended else do())

    def _read(self) -> None:
        text = self._server.config()
        if text:
            self.wanted, self._public = told_of(text), mounted(text).models
            self._go()

    def _go(self) -> None:
        if not self._up:
            return
        self.served = {name: sha for name, sha in self.served.items() if name in self.wanted}
        for name, sha in self.wanted.items():
            if self.served.get(name) != sha and (name, sha) not in self._loading:
                self._loading.add((name, sha))
                known = sha in self.served.values()
                slow = self._server.servers.adapters.of(sha).kind == "slow storage" and not known
                seconds = self._world.delay(40, 120) if slow else self._world.delay(0.2, 2.0 if known else 20.0)
                self._after(seconds, partial(self._load, name, sha))

    def _load(self, name: str, sha: str) -> None:
        self._loading.discard((name, sha))
        if self.wanted.get(name) != sha:
            return
        kind = self._server.servers.adapters.of(sha).kind
        self._world.hits.add(f"live adapter: {kind}")
        if kind == "unreadable":
            self._refused.add(sha)
        elif kind == "crashes" or (kind == "falters" and self._server.stay.restarts < 2):
            self._server.leave(139)
        elif kind != "mute":
            self.served[name] = sha
            self._server.loaded_ever.add(sha)
            if not self._server.stay.ready and all(self.served.get(n) == s for n, s in self._public.items()):
                self._server.answers()
            if kind == "crashes later":
                self._after(self._world.delay(5, 60), lambda: self._server.leave(139))

    def report(self) -> AdapterReport:
        """What it says of itself."""
        states = []
        for name, sha in self.wanted.items():
            state = "Served" if self.served.get(name) == sha else "Refused" if sha in self._refused else "Waiting"
            states.append(AdapterState.model_validate({"name": name, "manifestSha256": sha, "state": state, "message": "the model says so"}))
        return AdapterReport(adapters=states)


class ModelSidecars(Sidecars):
    """Sidecars without a network."""

    def __init__(self, world: World, conditions: "Weather") -> None:
        self._world, self._weather = world, conditions
        self.kubelets: Kubelets

    async def of(self, seen: EndpointState) -> Mapping[str, AdapterReport]:
        host = asks(seen.status)
        found = ((p.uid, self._ask(p.uid)) for p in seen.pods if host and p.parent == host and (p.ready or p.running))
        return {uid: report for uid, report in found if report}

    def _ask(self, uid: str) -> AdapterReport | None:
        here = self.kubelets.containers.get(uid)
        following = getattr(here.program, "following", None) if here and here.node.up else None
        return following.report() if following and not self._world.chance(self._weather.error) else None
