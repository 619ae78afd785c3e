"""One schedule: a world from its seed, run through its faults to its rest."""

import traceback
from dataclasses import dataclass, replace
from typing import Any

from finetune_operator.names import LABEL_JOB
from finetune_operator.objects import Key as ObjectKey
from finetune_operator.reconcile import RESYNC
from finetune_runtime.contract.result import TrainerStatus

from .api import Api, Raw, deleting
from .deployments import Deployments
from .disturbances import disturb
from .endpoint_rest import EndpointRest
from .endpoints import EndpointUsers
from .faults import endpoint_weather, weather
from .gateway import NOTICED, Gateway
from .hosts import Hosts, is_live
from .invariants import Invariants, fail, final
from .jobs import JobController
from .kubelet import EXIT, Container, Kubelets, Program, config_of
from .kueue import Kueue
from .merging import merges
from .process import Process
from .quiescence import waits_for
from .rollouts import Rollouts
from .serving import Servers
from .shares import Shares
from .storage import Storage
from .trainer import Runs
from .user import NAMESPACE, Users
from .watches import WATCHED
from .world import START, ViolationError, World

STORMY = 2400.0  # seconds in which faults happen
PATIENCE = 650.0  # seconds without any change after which nothing more is expected: longer than any deadline that users give
ENDPOINT = "e"  # before the seeds of schedules that are about endpoints
LIMIT = 10_000  # events of a schedule that never comes to rest


@dataclass(slots=True)
class Outcome:
    """How a schedule went."""

    seed: int
    endpoints: bool
    trace: list[str] | None  # where it was asked for
    hits: set[str]  # what the schedule came by
    invariant: str = ""
    violation: str = ""
    events: int = 0
    rounds: int = 0

    @property
    def name(self) -> str:
        """What it is replayed by."""
        return f"{ENDPOINT if self.endpoints else ''}{self.seed}"


class Schedule:
    """All actors of one world."""

    def __init__(self, world: World, *, endpoints: bool, **fixed: Any) -> None:
        """`fixed` are fields of the weather that are not left to chance."""
        self.world = world
        drawn = replace((endpoint_weather if endpoints else weather)(world.random, WATCHED), merged=endpoints and merges(world.seed))
        if endpoints and is_live(world.seed):
            drawn = replace(drawn, live=True, canary=0.0)
        self.weather = conditions = replace(drawn, **fixed)
        self.api = api = Api(world)
        self.storage = Storage()
        self.jobs = JobController(world, api, 3.0 if conditions.storm else 0.5)
        self.runs = Runs(world, api, self.storage, conditions, self._report, self._begun)
        self.kubelets = Kubelets(world, api, *((3, 4) if endpoints else (2, 1)), self._launch)
        self.servers = Servers(world, api, conditions, self.kubelets.show)
        self.process = Process(world, api, conditions)
        self.gateway = self.process.cluster.gateway = Gateway(world, api, 2.0 if conditions.storm else 0.5)
        if world.chance(conditions.late_gateway):
            self.gateway.installed = False
            world.after(world.delay(60, conditions.window), self._install_gateway)
        self.kueue = Kueue(world, api, 2.0 if conditions.storm else 0.5)
        self.deployments = Deployments(world, api, 3.0 if conditions.storm else 0.5)
        self.invariants = Invariants(world, api, self.storage, self.kubelets, self.process)
        self.rollouts = self.servers.listener = Rollouts(world, api, conditions, self.process)
        self.process.sidecars.kubelets = self.kubelets
        self.hosts = Hosts(world, api, self.rollouts, self.kubelets)
        self.shares = Shares(world, api, conditions, self.process, self.rollouts)
        self.endpoint_rest = EndpointRest(api, self.kubelets, self.servers, self.process, self.rollouts, self.gateway)
        self.users = EndpointUsers(world, api, conditions) if endpoints else Users(world, api, conditions)
        self.users.invariants, self.users.rollouts = self.invariants, self.rollouts
        self.users.begin()
        for name in ("alpha", "beta")[: conditions.jobs]:
            self.users.submit(name)
        if conditions.second_job:
            world.after(world.delay(0, 600), self.users.submit, "beta")
        for _ in range(conditions.edits):
            world.after(world.delay(0, conditions.window), self.users.act)
        for _ in range(conditions.disturbances):
            world.after(world.delay(0, conditions.window), disturb, self)

    def _install_gateway(self) -> None:
        """The Gateway API comes later. An operator that started without it ends where an endpoint needs it."""
        self.world.note("cluster", "gets the Gateway API")
        self.gateway.installed = True
        self.world.after(self.world.delay(0, NOTICED), self.process.crash)

    def run(self) -> None:
        """Storm, then calm, then rest. Raises ViolationError."""
        self._weather_on()
        self._calm()
        self._settle()
        self.invariants.at_rest()
        self.endpoint_rest.at_rest()
        self.shares.at_rest()
        self._quiescent()

    def _weather_on(self) -> None:
        """Until nothing happens any more, or long enough."""
        world, effects, since = self.world, 0, self.world.now
        while (world.busy or world.now < since + RESYNC + 20) and world.step(START + STORMY):
            self._bounded()
            if effects != self.api.effects:
                effects, since = self.api.effects, world.now

    def _bounded(self) -> None:
        if self.world.events > LIMIT:
            fail("every schedule comes to rest", f"{LIMIT} events, and still something happens")

    def _calm(self) -> None:
        """No more faults; what was broken for a while is mended, what is missing for good stays so."""
        self.world.note("world", "calm from here on")
        self.weather.calm_down()
        self.process.cluster.policies.clear()
        if self.rollouts.meddled > float("-inf"):  # what policies refused until now is made from here on
            self.rollouts.meddled = self.world.now
        self.process.requests.again()

    def _settle(self) -> None:
        """Run until nothing has changed for long."""
        world, effects, since = self.world, self.api.effects, self.world.now
        while world.busy or world.now - since < PATIENCE:
            if not world.step(since + PATIENCE if not world.busy else float("inf")):
                break
            self._bounded()
            if effects != self.api.effects:
                effects, since = self.api.effects, world.now

    def _quiescent(self) -> None:
        """Planning after applying is empty, and whoever is not final waits for something that is really missing."""
        effects, jobs, writes = self.api.effects, self.api.all("FineTuneJob"), []
        for _ in range(2):
            before = self.process.cluster.writes
            for raw in (*jobs, *self.api.all("ModelEndpoint")):
                self.process.add(ObjectKey(raw["kind"], NAMESPACE, raw["metadata"]["name"]))
            while self.world.busy:
                self.world.step(float("inf"))
            writes.append(self.process.cluster.writes - before)
        # Whoever waits for a name tries to take it, which is a request and no change.
        tries = any(raw["status"].get("reason") == "NameConflict" for raw in jobs)
        # Every few minutes all is applied anew: that comes due before one of two looks at the most.
        if self.api.effects != effects or (all(writes) and not tries):
            fail("planning after applying is empty", f"{writes} writes while nothing changes")
        for raw in self.api.all("FineTuneJob"):
            if not final(raw) and not deleting(raw) and not waits_for(raw, self.api, self.kubelets, self.kueue):
                status = raw["status"]
                fail("every job ends or says what it waits for", f"{status.get('phase')} {status.get('reason')}: {status.get('message')}")

    def _launch(self, pod: Raw, here: Container, leave: EXIT) -> Program:
        """The containers of a pod start: those of a job's step, or those of an endpoint."""
        steps = LABEL_JOB in (pod["metadata"].get("labels") or {})
        return self.runs.start(pod, here, leave) if steps else self.servers.start(pod, here, leave)

    def _begun(self, pod: Raw, uid: str, start: int) -> None:
        self.invariants.begun(pod, uid, start)

    def _report(self, pod: Raw, status: TrainerStatus) -> None:
        """A pod reports, over TLS with the certificate that its ConfigMap holds by now."""
        meta = pod["metadata"]
        config = self.api.get("ConfigMap", (meta["namespace"], config_of(pod)))
        if config and config["data"].get("status-ca.crt") == self.process.ca:
            self.world.hits.add("progress is reported")
            self.process.report(meta["namespace"], meta["labels"][LABEL_JOB], meta["name"], meta["uid"], status)


def run(seed: int, *, endpoints: bool = False, traced: bool = False, **fixed: Any) -> Outcome:
    """Run the schedule of a seed, about jobs or about an endpoint; `fixed` are fields of the weather that are not left to chance."""
    world = World(seed, traced=traced)
    outcome = Outcome(seed, endpoints, world.trace, world.hits)
    try:
        Schedule(world, endpoints=endpoints, **fixed).run()
    except ViolationError as error:
        outcome.invariant, outcome.violation = error.invariant, str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, it is a fault, of the operator or of the model
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.invariant, outcome.violation = "no exception", f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
    outcome.events, outcome.rounds = world.events, world.rounds
    return outcome
