"""When to kill: moments over the whole life of a pod, drawn from a seed and tied to what its log says, because clocks differ between machines."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

# In every run the same ones, so that a seed means the same stretches on every machine.
LANDMARK = re.compile(r"training on |starting |'global_step/max_steps': '\d+/\d+'|adapter committed")
# Into so many pieces go the long stretches: before the first landmark (imports), up to the first step (imports, the model) and from the last step on
# (saving, uploads, the adapter's commit). A step is one piece, with the evaluation, save and upload that it may bring.
PIECES = 4


@dataclass(frozen=True)
class Landmark:
    """Words in a pod's log, and when they came; `seconds` since the pod's start. No words: the start itself."""

    words: str
    seconds: float


@dataclass(frozen=True)
class Kill:
    """The signal that a pod gets `delay` seconds after `words` came into its log."""

    number: int
    signal: signal.Signals
    words: str
    delay: float

    def __str__(self) -> str:
        return f"kill {self.number}: {self.signal.name} {self.delay:.2f} s after {self.words or 'the start'!r}"


def kills(timeline: Sequence[Landmark], end: float, count: int, seed: int) -> list[Kill]:
    """As many SIGTERMs as SIGKILLs, `count` in all, each kind over the whole life of a pod that lived `end` seconds and left this timeline."""
    random = Random(seed)
    pieces = _pieces([Landmark("", 0.0), *timeline, Landmark("", end)])
    found: list[Kill] = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        wanted = count // 2 if number is signal.SIGTERM else count - count // 2
        for index in range(wanted):
            # One from each of `wanted` equal shares of the pieces: random, and yet everywhere.
            words, start, length = pieces[int((index + random.random()) * len(pieces) / wanted)]
            found.append(Kill(len(found), number, words, start + random.random() * length))
    return found


def _pieces(timeline: Sequence[Landmark]) -> list[tuple[str, float, float]]:
    """(words, seconds after them, length) of the stretches between landmarks."""
    pieces = []
    for here, there in pairwise(timeline):
        gap = there.seconds - here.seconds
        parts = PIECES if here.words in {"", "starting "} or there.words == "adapter committed" else 1
        pieces += [(here.words, part * gap / parts, gap / parts) for part in range(parts)]
    return pieces
