"""Last words of pods that are gone: an evicted pod is deleted as soon as it has ended, often before anybody looks at it again."""

from collections import deque

from .observe import PodView

KEPT = 8  # pods of one job


class Graves:
    """What was last seen of deleted pods, by (namespace, name of the owner). Lost with the process, as hearsay may be."""

    def __init__(self) -> None:
        self._pods: dict[tuple[str, str], deque[PodView]] = {}

    def bury(self, key: tuple[str, str], pod: PodView) -> None:
        """A pod was deleted; `pod` is what it was at the end."""
        self._pods.setdefault(key, deque(maxlen=KEPT)).append(pod)

    def get(self, key: tuple[str, str]) -> tuple[PodView, ...]:
        """Pods that are gone."""
        return tuple(self._pods.get(key, ()))

    def forget(self, key: tuple[str, str]) -> None:
        """Drop a job that is done."""
        self._pods.pop(key, None)
