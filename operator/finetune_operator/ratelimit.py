"""Token buckets: so many at once, and so many a second after that, for each key."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Buckets(Generic[Key]):
    """One bucket for each of the `keys` that came last: who is forgotten starts with a full one.

    Times are seconds of a clock that never goes back.
    """

    def __init__(self, burst: int, per_second: float, keys: int) -> None:
        """A full bucket grants `burst` requests and is refilled by `per_second`."""
        self._burst, self._rate, self._keys = float(burst), per_second, keys
        self._levels: OrderedDict[Key, tuple[float, float]] = OrderedDict()  # content, and when it was that

    def take(self, key: Key, now: float) -> float:
        """Seconds to wait until a request is granted; 0: it is granted now."""
        level = self._level(key, now)
        granted = level >= 1
        self._set(key, level - 1 if granted else level, now)
        return 0.0 if granted else (1 - level) / self._rate

    def give_back(self, key: Key, now: float) -> None:
        """Undo a grant that turned out to cost nothing."""
        self._set(key, min(self._burst, self._level(key, now) + 1), now)

    def _level(self, key: Key, now: float) -> float:
        level, then = self._levels.get(key, (self._burst, now))
        return min(self._burst, level + self._rate * max(0.0, now - then))

    def _set(self, key: Key, level: float, now: float) -> None:
        self._levels[key] = (level, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._keys:
            self._levels.popitem(last=False)
