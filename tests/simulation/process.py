"""The operator's process: its work queue, its rounds, its end and its next start.

The rounds are the operator's own coroutines. They are driven by hand: a request either returns at once or hands over to
the simulation, which goes on with the round later. The queue is the one of finetune_operator.queue in simulated time.
"""

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from finetune_operator.handlers import Runtime
from finetune_operator.kube import ApiError
from finetune_operator.objects import Key
from finetune_operator.queue import FIRST_BACKOFF, LAST_BACKOFF, WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_runtime.contract.result import TrainerStatus

from .api import Api, Raw
from .cluster import Crash, ModelCluster
from .faults import Requests, Weather
from .following import ModelSidecars
from .watches import WATCHED, Watches
from .world import World

Round = Coroutine[Any, Any, float | None]


class Process:
    """The operator, as often as it is started."""

    def __init__(self, world: World, api: Api, conditions: Weather) -> None:
        self._world, self._api, self._weather = world, api, conditions
        self.requests = Requests(world.random, conditions)
        self.cluster = ModelCluster(world, api, conditions, self.requests)
        self.sidecars = ModelSidecars(world, conditions)
        self.starts, self.since = 0, world.now
        self.running = False
        self._skew = 0.0
        self.version = 1
        self.settings: Settings
        self.reconciler: Reconciler
        self.watches: Watches
        for kind in WATCHED:
            api.listen(kind, self._listener(kind))
        self.start()

    def _listener(self, kind: str) -> Any:
        def listener(change: str, raw: Raw, _: Raw | None) -> None:
            if self.running:
                self.watches.receive(kind, change, raw)

        return listener

    def now(self) -> float:
        """The operator's clock."""
        return self._world.now + self._skew

    def error(self) -> float:
        """Seconds by which two readings of the operator's clock may be wrong."""
        return 2 * self._weather.skew + 2

    def set_clock(self) -> None:
        """Somebody sets the clock of the operator's node."""
        self._skew = self._world.delay(-self._weather.skew, self._weather.skew)
        self._world.note("clock", f"the operator's clock is {self._skew:+.1f} s off")

    def start(self) -> None:
        """A new process: an empty memory, a new certificate, perhaps a new version."""
        world = self._world
        self.starts, self.since = self.starts + 1, world.now
        self.running = True
        self.waiting: set[Key] = set()
        self.active: dict[Key, Round] = {}
        self.again: set[Key] = set()
        self.timers: dict[Key, float] = {}
        self.errors: dict[Key, int] = {}
        self.set_clock() if self._weather.skew else None
        self.settings = Settings(
            trainer_image=f"trainer:{self.version}", inference_image=f"inference:{self.version}", status_url="https://status.system.svc", allow_cpu=True
        )
        self.runtime = runtime = Runtime(self.settings)
        runtime.queue = cast("WorkQueue[Key]", self)
        self.watches = Watches(world, self._api, SimpleNamespace(runtime=runtime), self._lag, 0.5 if self._weather.storm else 0.05)
        self.ca = f"certificate of start {self.starts}"
        self.reconciler = Reconciler(self.cluster, self.settings, self.watches.caches, runtime.progress, self.ca, self.now, self.sidecars)
        runtime.reconciler, runtime.caches = self.reconciler, self.watches.caches
        world.note("operator", f"starts (start {self.starts}, version {self.version})")
        self.watches.start()

    def crash(self) -> None:
        """The process ends without a word. A new one starts later."""
        if not self.running:
            return
        self.running = False
        self.watches.stop()
        for coroutine in self.active.values():
            coroutine.close()
        self.active = {}
        long = self._world.chance(self._weather.long_downtime)
        self._world.hits.add("fault long_downtime" if long else "fault crash")
        self._world.after(self._world.delay(600, 7200) if long else self._world.delay(0.5, self._weather.downtime + 1), self.start)

    def upgrade(self) -> None:
        """A newer version is installed."""
        self.version += 1
        self.crash()

    def report(self, namespace: str, job: str, pod: str, uid: str, status: TrainerStatus) -> None:
        """A pod's progress report arrives at the status server (StatusServer, Runtime._reported)."""
        key = (namespace, job)
        if self.running and (found := self.runtime.job_of(*key, pod, uid)):
            self.runtime.progress.record(key, found, uid, status, self.now())
            self.add_after(Key("FineTuneJob", *key), self.settings.progress_seconds)

    def add(self, key: Key) -> None:
        """WorkQueue.add."""
        self.timers.pop(key, None)
        if key in self.active:
            self.again.add(key)
        elif key not in self.waiting:
            self.waiting.add(key)
            self._world.after(self._world.delay(0.0, self._weather.queue), self._begin, key, self.starts)

    def add_after(self, key: Key, seconds: float) -> None:
        """WorkQueue.add_after."""
        due = self._world.now + seconds
        if key in self.timers and self.timers[key] <= due:
            return
        self.timers[key] = due
        self._world.timer(seconds, self._ring, key, due, self.starts)

    def _ring(self, key: Key, due: float, start: int) -> None:
        if self.running and start == self.starts and self.timers.get(key) == due:
            self.add(key)

    def _begin(self, key: Key, start: int) -> None:
        if self.running and start == self.starts:
            self.waiting.discard(key)
            self._world.rounds += 1
            self.active[key] = self.reconciler.reconcile(key)
            self._drive(key, start)

    def _drive(self, key: Key, start: int) -> None:
        if not self.running or start != self.starts:
            return
        coroutine = self.active[key]
        try:
            pause = coroutine.send(None)
        except StopIteration as end:
            self.errors.pop(key, None)
            self._ended(key, end.value)
        except Crash:
            del self.active[key]
            self.crash()
        except ApiError as error:
            self._failed(key, error)
        else:
            self._world.after(pause, self._drive, key, start)

    def _failed(self, key: Key, error: ApiError) -> None:
        self._world.note("operator", f"{key}: {error}")
        count = self.errors[key] = self.errors.get(key, 0) + 1
        self._ended(key, min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16)) * self._world.delay(0.8, 1.2))

    def _ended(self, key: Key, after: float | None) -> None:
        del self.active[key]
        if after is not None:
            self.add_after(key, after)
        if key in self.again:
            self.again.discard(key)
            self.add(key)

    def _lag(self, kind: str) -> float:
        if self._weather.stall and self._world.chance(self._weather.stall):
            self._world.hits.add("fault late_event")
            return self._world.delay(20, 120)
        return self._world.delay(0.0, self._weather.lags[kind])
