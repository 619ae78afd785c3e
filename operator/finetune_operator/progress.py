"""Progress of running trainings: the last report of each job, how old it is, and the time that is left."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune_runtime.contract.result import TrainerStatus

from . import clock
from .api.jobstatus import Progress

WINDOW = 64  # (step, time) pairs of one pod that are kept
# A supervisor reports at least once a minute, also while its model is loaded or evaluated: three reports in a row are missing.
STALE_AFTER = 180.0
SHOWN_EVERY = 10.0  # seconds between two reports that a status shows: each costs everybody who watches the job an update
LOADING = "Loading"  # phase of a pod whose training process starts
MOST = 2**31 - 1

Point = tuple[int, float]
Key = tuple[str, str]


def is_stale(updated_at: str | None, now: float) -> bool:
    """Whether the last report is so old that nobody should rely on it. No report at all is not an old one."""
    return updated_at is not None and now - clock.seconds(updated_at) > STALE_AFTER


def shown_in(reported: Progress, known: Progress | None) -> float | None:
    """Seconds until a report takes the place of the one that a status shows; 0: at once; None: never, as it is not newer.

    Between two of them the status is left alone: the time left would be another one at each look.
    """
    if known is None or not known.updated_at or not reported.updated_at:
        return 0.0
    newer = clock.seconds(reported.updated_at) - clock.seconds(known.updated_at)
    if newer < -STALE_AFTER:
        return 0.0  # the clock was set back: what is shown has a time that never was
    return max(0.0, SHOWN_EVERY - newer) if newer > 0 else None


def eta_seconds(points: Sequence[Point], total: int, now: float) -> int | None:
    """Seconds from `now` until `total` steps; None while nothing can be said.

    The speed is the average over the later half of the steps that the pod has done. Evaluations and checkpoints belong
    to it, as they will come again; a slow beginning, or a jump of the clock, is forgotten in time.
    `points`: steps and times both rise.
    """
    if len(points) < 2 or total <= 0:
        return None
    last, end = points[-1]
    middle = (points[0][0] + last) / 2
    first, start = points[bisect_right(points, middle, key=lambda point: point[0]) - 1]
    left = (total - last) * (end - start) / (last - first) - max(0.0, now - end)
    if left < -STALE_AFTER:
        return None  # refuted: by this estimate it would have been over long ago
    return max(0, round(left))


@dataclass(slots=True)
class Track:
    """Reports of one pod. A new pod starts a new track: time without a pod must not count as slow steps."""

    job: str
    pod: str
    points: list[Point] = field(default_factory=list)
    latest: Progress = field(default_factory=Progress)

    def add(self, step: int, now: float) -> None:
        """Take a step that was reported at `now`."""
        if self.points:
            last, then = self.points[-1]
            if step < last or now < then:
                self.points.clear()  # the pod went back to a checkpoint, or the clock was set back: another speed, another time
            elif step == last or now == then:
                return
        self.points.append((step, now))
        if len(self.points) > WINDOW:
            # Every second one goes, and the newest stays: the pairs reach back to the beginning however long it runs.
            self.points = self.points[::2]


def _integer(values: Mapping[str, str], key: str) -> int | None:
    """Whole number from 0 to what a status can hold; None for anything else a pod may send."""
    try:
        return max(0, min(int(float(values[key])), MOST))
    except (KeyError, ValueError, OverflowError):
        return None


def _number(values: Mapping[str, str], key: str, digits: int) -> str | None:
    """Short text of a finite number; None for anything else a pod may send."""
    try:
        value = float(values[key])
    except (KeyError, ValueError):
        return None
    return f"{value:.{digits}g}" if math.isfinite(value) else None


class ProgressStore:
    """Last reports by (namespace, job name). Lost with the process: reports come again within a minute.

    A job may be deleted and made anew while pods of the old one still end and report: only its own UID finds a report.
    """

    def __init__(self) -> None:
        self._tracks: dict[Key, Track] = {}

    def record(self, key: Key, job: str, pod: str, status: TrainerStatus, now: float) -> None:
        """Take a report of a pod. `job` and `pod` are UIDs; `now` is our clock in seconds since the epoch: a pod's clock never matters."""
        track = self._tracks.get(key)
        if track is None or track.pod != pod:
            track = self._tracks[key] = Track(job, pod)
        values = {metric.name: metric.value for metric in status.metrics}
        step, total = _integer(values, "step") or 0, _integer(values, "totalSteps") or 0
        if values.get("phase") == LOADING:
            track.points.clear()  # after an out-of-memory error a new process goes on from a checkpoint, at another speed
        elif total:
            track.add(step, now)
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
            checkpoint_step=_integer(values, "checkpointStep") or 0,
            resumed_from=_integer(values, "resumedFrom"),
            fast_path=values.get("fastPath"),
            updated_at=clock.text(now),
        )

    def latest(self, key: Key, job: str, now: float) -> Progress | None:
        """Last report of the job with the UID `job`, with the time left from `now` on; None when this process has seen none."""
        track = self._tracks.get(key)
        if track is None or track.job != job:
            return None
        stale = is_stale(track.latest.updated_at, now)
        left = None if stale else eta_seconds(track.points, track.latest.total_steps, now)
        return track.latest.model_copy(update={"eta_seconds": left, "stale": stale or None})

    def forget(self, key: Key) -> None:
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
