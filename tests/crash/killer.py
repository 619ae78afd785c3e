"""SIGKILL for the operator at moments that are drawn from a seed, and tied to what it has written so far."""

import threading
import time
from dataclasses import dataclass
from random import Random
from signal import SIGKILL

from tests.integration.operator_process import Operator

LONGEST_DELAY = 0.3  # seconds


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after so many writes to the objects of a job; most decisions are taken within milliseconds after one."""

    writes: int
    delay: float

    def __str__(self) -> str:
        return f"{self.delay:.2f} s after write {self.writes}"


def moments(seed: int, count: int, writes: int) -> list[Moment]:
    """Moments spread over a life of so many writes: each share of it gets one."""
    random = Random(seed)
    # Half of the kills come at once after a write: the operator is in the middle of what follows from it.
    found = [Moment(int((n + random.random()) * (writes + 1) / count), random.choice((0.0, random.random() * LONGEST_DELAY))) for n in range(count)]
    random.shuffle(found)
    return found


@dataclass
class Tally:
    """What the last line of `make test-crash` says."""

    kills: int = 0
    same: int = 0

    def __str__(self) -> str:
        return f"kills={self.kills} same_end_state={self.same}"


class Killer:
    """Kills one operator for many jobs, one at a time: a kill that is asked for while it starts waits until it is up."""

    def __init__(self, operator: Operator, tally: Tally, seed: int) -> None:
        self._operator, self._tally, self._lock, self._random = operator, tally, threading.Lock(), Random(seed)

    def kill(self) -> None:
        waited = self._lock.locked()
        with self._lock:
            if waited:  # the moment is over: any other one is as good, but not always the same
                time.sleep(self._random.random() * 2)
            self._operator.stop(SIGKILL)
            self._tally.kills += 1
            self._operator.start()
