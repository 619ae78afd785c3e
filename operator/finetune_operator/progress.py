"""Progress of running trainings: the last report of each job and the time that is left."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_runtime.contract.result import TrainerStatus

from .api.jobstatus import Progress

STALE_AFTER = 300.0
WINDOW = 64  # (step, time) pairs of one pod that the estimate looks back on


@dataclass(slots=True)
class Track:
    """Reports of one pod. A new pod starts a new track: time without a pod must not count as slow steps."""

    pod: str
    points: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    latest: Progress = field(default_factory=Progress)


def eta_seconds(points: "deque[tuple[int, float]]", total: int, now: float) -> int | None:
    """Seconds until `total` steps, from (step, time) pairs; None until two different steps were seen.

    The rate over the whole window is used: single steps vary with row lengths, evaluations and checkpoints belong to it.
    """
    if len(points) < 2 or total <= 0:
        return None
    (first, start), (last, end) = points[0], points[-1]
    if last <= first or end <= start:
        return None
    left = (total - last) * (end - start) / (last - first) - (now - end)
    return max(0, round(left))


def _integer(values: Mapping[str, str], key: str) -> int:
    try:
        return max(0, int(float(values.get(key, "0"))))
    except (ValueError, OverflowError):
        return 0


def _number(values: Mapping[str, str], key: str, digits: int) -> str | None:
    """Short text of a finite number; None for anything else a pod may send."""
    try:
        value = float(values[key])
    except (KeyError, ValueError):
        return None
    return f"{value:.{digits}g}" if value == value and abs(value) != float("inf") else None  # noqa: PLR0124  NaN


class ProgressStore:
    """Last reports by (namespace, job name). Lost with the process: reports come again within seconds."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, str], Track] = {}

    def record(self, key: tuple[str, str], pod: str, status: TrainerStatus, now: float) -> None:
        """Take a report. `now` is our clock in seconds, so that a pod's clock never matters."""
        track = self._tracks.get(key)
        if track is None or track.pod != pod:
            track = self._tracks[key] = Track(pod)
        values = {metric.name: metric.value for metric in status.metrics}
        step, total = _integer(values, "step"), _integer(values, "totalSteps")
        if step and (not track.points or track.points[-1][0] != step):
            track.points.append((step, now))
        track.latest = Progress(
            step=step,
            total_steps=total,
            percent=min(100, 100 * step // total) if total else 0,
            epoch=_number(values, "epoch", 3),
            loss=_number(values, "loss", 4),
            eval_loss=_number(values, "evalLoss", 4),
            learning_rate=_number(values, "learningRate", 3),
            tokens_per_second=_number(values, "tokensPerSecond", 4),
            gpu_memory=_number(values, "gpuMemoryGiB", 3),
            eta_seconds=eta_seconds(track.points, total, now),
            updated_at=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def latest(self, key: tuple[str, str], now: float) -> Progress | None:
        """Last report of a job; None when this process has seen none."""
        track = self._tracks.get(key)
        return track.latest if track else None

    def forget(self, key: tuple[str, str]) -> None:
        """Drop a job that is gone."""
        self._tracks.pop(key, None)


def duration(seconds: int) -> str:
    """Short text for people: 45s, 14m, 3h20m, 2d4h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 60:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
