"""What runs in the pods of an endpoint: engines that load and answer, or do not, and the pod that asks them for the gate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from finetune_operator import names
from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult
from finetune_runtime.contract.result import Exit, Reason, StepResult

from .adapters import mounted, told_of
from .api import Api, Raw
from .following import Following
from .kubelet import EXIT, Container, config_of
from .merging import Merges, Merging
from .staying import answers
from .world import World

if TYPE_CHECKING:
    from .faults import Weather

DRAIN = 10.0  # seconds for which a pod that ends still answers
Tell = Callable[[Container], None]


@dataclass(frozen=True, slots=True)
class Nature:
    """What an adapter turns out to be like: `kind` as a served version, `quality` as a share of questions that it answers well."""

    kind: str = "good"
    quality: float = 1.0


_KINDS = ("mute", "crashes", "falters", "crashes later", "crashes later", "crashes later", "crashes later", "unreadable", "slow storage")
GOOD = Nature()


class Adapters:
    """Natures by digest, drawn when an adapter is served for the first time."""

    def __init__(self, world: World, conditions: "Weather") -> None:
        self._world, self._weather = world, conditions
        self._natures: dict[str, Nature] = {}

    def of(self, digest: str) -> Nature:
        """What an adapter is like."""
        if not self._weather.endpoints:
            return GOOD
        if digest not in self._natures:
            random = self._world.random
            kind = random.choice(_KINDS) if self._world.chance(self._weather.bad_versions) else "good"
            self._natures[digest] = Nature(kind, random.choice((1.0, 1.0, 0.9, 0.5)))
        return self._natures[digest]

    def worst(self, digests: Iterable[str]) -> Nature:
        """What a version is like that serves all of these: as the first of them that is not good."""
        found = [self.of(digest) for digest in sorted(digests)]
        return next((nature for nature in found if nature.kind != "good"), next(iter(found), GOOD))


@lru_cache(maxsize=256)
def asked_of(text: str) -> EvaluateConfig:
    """The configuration of an evaluation."""
    return EvaluateConfig.model_validate_json(text)


def opens(gate: Evaluation, eval_loss: str | None, quality: float) -> bool:
    """Whether a gate is open, as the questions turn out."""
    bounded = gate.eval_loss is None or (eval_loss is not None and float(eval_loss) <= float(gate.eval_loss.max))
    return bounded and (not gate.asks or quality >= float(gate.min_pass_rate))


def place_at(url: str) -> str:
    """Deployment behind a URL, which its Service is named after."""
    return (urlsplit(url).hostname or "").partition(".")[0]


class Listener(Protocol):
    """Who wants to know of evaluations."""

    def asks(self, pod: Raw, config: EvaluateConfig) -> None:
        """An evaluation begins."""

    def asked(self, config: EvaluateConfig, *, passed: bool) -> None:
        """An evaluation has come to a result."""


class Servers:
    """All programs of endpoints. `broken`: engines that start from now on never answer."""

    def __init__(self, world: World, api: Api, conditions: "Weather", show: Tell) -> None:
        """`show` is how a kubelet tells of a container whose readiness has changed."""
        self.world, self.api, self.weather, self.show = world, api, conditions, show
        self.adapters = Adapters(world, conditions)
        self.broken = False
        self.listener: Listener
        self.served: dict[str, dict[str, str]] = {}  # digests of adapters by the model's name, of each version
        self.merges = Merges()
        self._mute: list[Server] = []

    def start(self, pod: Raw, here: Container, leave: EXIT) -> "Server | Interview | Merging":
        """The containers start with the configuration that is mounted now."""
        if pod["metadata"]["labels"].get(names.LABEL_STEP) == names.MERGE:
            return Merging(self, self.api, pod, leave)
        config = self.api.get("ConfigMap", (here.key[0], config_of(pod)))
        text = config["data"]["config.json"] if config else "{}"
        if not here.stay:
            return Interview(self, pod, leave, asked_of(text))
        self.merges.served(text)
        models = mounted(text).models
        self.served.setdefault(pod["metadata"]["labels"][names.LABEL_VERSION], {}).update(told_of(text))
        nature = self.adapters.worst(models.values())
        if '"live"' not in text:
            return Server(self, pod, here, leave, nature)
        # Only what the init container reads can keep such an engine from its start: adapters come later.
        server = Server(self, pod, here, leave, nature if nature.kind in ("unreadable", "slow storage") else GOOD)
        server.following = Following(server, text)
        return server

    def wait(self, server: "Server") -> None:
        """It would answer if engines were not broken."""
        self._mute.append(server)

    def mend(self) -> None:
        """Engines answer again."""
        self.broken = False
        mute, self._mute = self._mute, []
        for server in mute:
            self.world.after(self.world.delay(5, 120), server.loaded)

    def answering(self, namespace: str, version: str) -> list[Raw]:
        """Pods that a version's Service sends requests to."""
        return [p for p in self.api.select("Pod", namespace, f"{names.LABEL_VERSION}={version}") if answers(p)]


class Server:
    """One serving pod: fetches, loads, answers."""

    uid, trains = "", False

    def __init__(self, servers: Servers, pod: Raw, here: Container, leave: EXIT, nature: Nature) -> None:
        assert here.stay
        self.servers, self.pod, self.here, self.stay, self._leave, self.nature = servers, pod, here, here.stay, leave, nature
        self.container, self.ended, self.terminating = names.FETCH_CONTAINER, False, False
        self.loaded_ever: set[str] = set()  # digests of adapters that its sidecar had loaded
        self.following: Following | None = None  # its sidecar, where adapters come and go
        self.since = servers.world.now
        self._after(servers.world.delay(1, 10), self._fetched)

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self.servers.world.after(seconds, lambda: None if self.ended else call())

    def leave(self, code: int, reason: Reason | None = None) -> None:
        """End with an exit code and, unless it crashed, a message."""
        self.servers.world.hits.add(f"serving pod: {self.nature.kind}")
        self._leave(
            code, "Error" if code else "Completed", StepResult(step="fetch", reason=reason, message=f"fetch: {reason}").encode() if reason else "Traceback"
        )

    def _fetched(self) -> None:
        if self.nature.kind == "unreadable":
            self.leave(Exit.MODEL_INVALID, Reason.MODEL_INVALID)
        elif self.nature.kind == "slow storage" and self.stay.restarts < 2:
            self.leave(Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
        else:
            self.container = names.CONTAINER
            crashes = self.nature.kind == "crashes" or (self.nature.kind == "falters" and self.stay.restarts < 2)
            if crashes:
                self._after(self.servers.world.delay(1, 20), lambda: self.leave(1))
            else:
                self._after(self.servers.world.delay(5, 80), self.loaded)

    def loaded(self) -> None:
        """The engine has read the model."""
        if self.ended or self.terminating or self.nature.kind == "mute":
            return
        if self.servers.broken:
            self.servers.wait(self)
            return
        if self.following and not self.stay.ready:
            self.following.began()
            return
        self.answers()

    def answers(self) -> None:
        """All names that users ask are answered."""
        world = self.servers.world
        self.stay.ready = True
        world.note("engine", f"{self.pod['metadata']['name']} answers")
        self.servers.show(self.here)
        self.since = world.now
        if self.nature.kind == "crashes later":
            self._after(world.delay(5, 60), lambda: self.leave(139))

    def config(self) -> str:
        """What its ConfigMap says now; empty: it is gone."""
        found = self.servers.api.get("ConfigMap", (self.here.key[0], config_of(self.pod)))
        text = str(found["data"]["config.json"]) if found else ""
        if text:
            self.servers.served.setdefault(config_of(self.pod), {}).update(told_of(text))
        return text

    def terminate(self) -> None:
        """SIGTERM comes when every proxy has heard of the end."""
        if not self.terminating:
            self.terminating = True
            self._after(DRAIN + self.servers.world.delay(0.1, 5), lambda: self.leave(0))

    def stop(self) -> None:
        """Nothing of it happens any more."""
        self.ended = True


class Interview:
    """The pod of an evaluation."""

    uid, trains, container = "", False, names.CONTAINER

    def __init__(self, servers: Servers, pod: Raw, leave: EXIT, config: EvaluateConfig) -> None:
        self.servers, self.pod, self._leave, self.config, self.ended = servers, pod, leave, config, False
        world = servers.world
        servers.listener.asks(pod, config)
        code = world.random.choice((1, 137, Exit.STORAGE_UNAVAILABLE, Exit.DATA_INVALID)) if world.chance(servers.weather.pod_failure) else 0
        world.after(world.delay(3, 90), lambda: None if self.ended else self._done(code))

    def _done(self, code: int) -> None:
        config, serves = self.config, self.servers.answering(*self._at())
        if code:
            told = {Exit.STORAGE_UNAVAILABLE: Reason.STORAGE_UNAVAILABLE, Exit.DATA_INVALID: Reason.DATA_INVALID}.get(Exit(code)) if code in set(Exit) else None
            self._end(code, told)
        elif not serves:
            self._end(Exit.CRASH, Reason.ENDPOINT_UNAVAILABLE)
        else:
            quality = self._quality(config.candidate.url, config.candidate.model)
            passed = all(opens(gate, config.eval_loss, quality) and self._is_no_worse(gate, quality) for gate in config.gates)
            self.servers.listener.asked(config, passed=passed)
            result = EvaluationResult(passed=passed, reasons=[] if passed else [f"pass rate {quality}"], prompts=1, repeats=3)
            self._end(0, Reason.COMPLETED if passed else Reason.GATE_CLOSED, result)

    def _at(self) -> tuple[str, str]:
        """Namespace and Deployment of what it asks."""
        return self.config.endpoint.namespace, place_at(self.config.candidate.url)

    def _quality(self, url: str, model: str) -> float:
        return self.servers.adapters.of(self.servers.served[place_at(url)][model]).quality

    def _is_no_worse(self, gate: Evaluation, quality: float) -> bool:
        """Than what users get now, where that is to be compared with and can be asked."""
        current = self.config.current
        if not gate.not_worse_than_current or current is None:
            return True
        answers = self.servers.answering(self.config.endpoint.namespace, place_at(current.url))
        return bool(answers) and quality >= self._quality(current.url, current.model)

    def _end(self, code: int, reason: Reason | None, result: EvaluationResult | None = None) -> None:
        told = f"passed={result.passed}" if result else reason or "crash"
        self.servers.world.hits.add(f"evaluation: {told}")
        message = StepResult(step="evaluate", reason=reason, message=f"evaluate: {told}", evaluation=result).encode() if reason else "Traceback"
        self._leave(code, "Error" if code else "Completed", message)

    def terminate(self) -> None:
        """SIGTERM: what was not asked yet never is."""
        self.servers.world.after(0.5, lambda: None if self.ended else self._leave(143, "Error", ""))

    def stop(self) -> None:
        """Nothing of it happens any more."""
        self.ended = True
