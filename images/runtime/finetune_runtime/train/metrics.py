"""report/metrics.jsonl: one record a step over all attempts, strict JSON, steps in order."""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from .checkpoints import best

# ms-swift's names (transformers' and its own) and ours.
_NAMES = {
    "loss": "loss",
    "learning_rate": "learningRate",
    "grad_norm": "gradNorm",
    "token_acc": "tokenAccuracy",
    "eval_loss": "evalLoss",
    "eval_token_acc": "evalTokenAccuracy",
}


class Metrics:
    """Records by step. A record: step, epoch, the values above as far as they are known and finite, tokensPerSecond, seconds, gpuMemoryGiB, time.

    The first one after a resume has resumedFrom, and in `resumes` what happened since the one before it, an entry each: from (a step),
    because (NewPod or OutOfMemory), lostSteps (trained again), microBatch and time.
    """

    def __init__(self, tokens_per_step: float = 0.0) -> None:
        """`tokens_per_step`: tokens that an optimizer step trains on average; 0: not known."""
        self._tokens_per_step = tokens_per_step
        self._timed: tuple[int, float] | None = None  # step and time from which on nothing but training happened
        self._resumes: list[dict[str, Any]] = []  # not yet in a record
        self._records: dict[int, dict[str, Any]] = {}
        self._last: dict[str, Any] = {}  # the newest value of each name
        self._seconds_before = 0.0
        self._started = 0.0
        self._resumed_from = 0

    def restore(self, text: str, step: int, micro_batch: int = 0) -> None:
        """Takes over the records of earlier attempts up to `step`, which is resumed from: what came later is trained again."""
        for record in _parse(text.splitlines()):
            self._records[record["step"]] = record
        self.rewind(step, "NewPod", micro_batch)

    def rewind(self, step: int, because: str = "OutOfMemory", micro_batch: int = 0) -> None:
        """Forgets what came after `step`, because training goes on from there, with `micro_batch` rows at a time. The next record is marked resumedFrom."""
        forgotten = [self._records[key] for key in sorted(self._records) if key > step]
        # Of two resumes from the same step both are remembered, though the steps between them are trained again.
        earlier = [resume for record in forgotten for resume in record.get("resumes", [])]
        lost = forgotten[-1]["step"] - step if forgotten else 0
        entry = {"from": step, "because": because, "lostSteps": lost, "microBatch": micro_batch}
        self._resumes = [*earlier, *self._resumes, {name: value for name, value in entry.items() if value or name == "from"}]
        self._records = {key: record for key, record in self._records.items() if key <= step}
        self._last = {name: value for key in sorted(self._records) for name, value in self._records[key].items()}
        self._resumed_from = step

    def begin(self, now: float) -> None:
        """Training starts at `now` (seconds of a monotonic clock)."""
        self._started = now
        self._seconds_before = float(self._last.get("seconds", 0.0))
        self._timed = None

    def time_from(self, step: int, now: float) -> None:
        """Speed is measured from here on, because what came before (an evaluation, a checkpoint) was no training."""
        self._timed = (step, now)

    def add(self, step: int, epoch: float, values: dict[str, float], memory_gib: float, *, now: float, time: datetime) -> None:
        """Merges what the trainer logged at `step`: losses and evaluation come separately."""
        known = {_NAMES[name]: value for name, value in values.items() if name in _NAMES and math.isfinite(value)}
        if not known:
            return
        if step not in self._records:
            self._records[step] = {"step": step, "epoch": round(epoch, 4)}
            if self._resumed_from:
                self._records[step]["resumedFrom"] = self._resumed_from
                self._resumed_from = 0
            if self._resumes:
                self._records[step]["resumes"] = [resume | {"time": time.isoformat(timespec="seconds")} for resume in self._resumes]
                self._resumes = []
        self._records[step] |= known | {"seconds": round(self._seconds_before + now - self._started, 3), "time": time.isoformat(timespec="seconds")}
        if memory_gib:
            self._records[step]["gpuMemoryGiB"] = round(memory_gib, 3)
        if "loss" in known:
            if self._timed and self._tokens_per_step and step > self._timed[0] and now > self._timed[1]:
                self._records[step]["tokensPerSecond"] = round(self._tokens_per_step * (step - self._timed[0]) / (now - self._timed[1]), 1)
            self._timed = (step, now)
        self._last |= self._records[step]

    def last(self, name: str) -> float | None:
        """The newest known value, for example of loss or evalLoss."""
        return self._last.get(name)

    def at(self, step: int, name: str) -> float | None:
        """The value that belongs to this very step."""
        return self._records.get(step, {}).get(name)

    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss."""
        return best({step: record.get("evalLoss") for step, record in self._records.items()})

    def write(self, path: Path) -> None:
        """Replaces the file at once, so that an upload never reads half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(self._records[step], allow_nan=False) + "\n" for step in sorted(self._records)))
        partial.replace(path)


def _parse(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Records of a stored file; what is none is passed over, because curves are no reason to lose a training."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
