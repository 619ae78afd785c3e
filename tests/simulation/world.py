"""Time, chance and the order of events. Everything in a schedule follows from its seed."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from finetune_operator import clock

START = 1_800_000_000.0  # seconds since the epoch at which every schedule begins


class ViolationError(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


class World:
    """Discrete events in simulated seconds. Actors schedule their own next steps; nothing runs at the same time."""

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        self.seed, self.random = seed, Random(seed)
        self.now = START
        self.trace: list[str] | None = [] if traced else None
        self.hits: set[str] = set()  # what this schedule came by, for the coverage table
        self.events = 0
        self.rounds = 0  # of the operator
        self.busy = 0  # events ahead that are not mere timers of the operator
        self._heap: list[tuple[float, int, bool, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen later."""
        self._number += 1
        self.busy += 1
        heappush(self._heap, (self.now + seconds, self._number, True, call, args))

    def timer(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """The same for somebody who only looks again: does not keep a schedule going."""
        self._number += 1
        heappush(self._heap, (self.now + seconds, self._number, False, call, args))

    def step(self, until: float) -> bool:
        """The next event. False when there is none before `until`."""
        if not self._heap or self._heap[0][0] > until:
            return False
        due, _, busy, call, args = heappop(self._heap)
        self.now = max(self.now, due)
        self.busy -= busy
        self.events += 1
        call(*args)
        return True

    def note(self, actor: str, what: str) -> None:
        """A line of the trace. Callers ask for `trace` first where making the line costs something."""
        if self.trace is not None:
            self.trace.append(f"{self.events:5d} {self.now - START:9.2f}s {actor:<10} {what}")

    def text(self) -> str:
        """Now, as the API server writes it."""
        return clock.text(self.now)

    def chance(self, probability: float) -> bool:
        """Whether something happens."""
        return self.random.random() < probability

    def delay(self, low: float, high: float) -> float:
        """Seconds between two bounds."""
        return low + (high - low) * self.random.random()
