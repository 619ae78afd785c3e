"""report/metrics.jsonl: one record a step over all attempts, strict JSON, steps in order."""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

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
    """Records by step. A record: step, epoch, the values above as far as they are known and finite, seconds, gpuMemoryGiB, time."""

    def __init__(self) -> None:
        self._records: dict[int, dict[str, Any]] = {}
        self._last: dict[str, Any] = {}  # the newest value of each name
        self._seconds_before = 0.0
        self._started = 0.0
        self._resumed_from = 0

    def restore(self, text: str, step: int) -> None:
        """Takes over the records of earlier attempts up to `step`, which is resumed from: what came later is trained again."""
        for record in _parse(text.splitlines()):
            if record["step"] <= step:
                self._records[record["step"]] = record
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`, because training goes on from there. The next record is marked resumedFrom."""
        self._records = {key: record for key, record in self._records.items() if key <= step}
        self._last = {name: value for key in sorted(self._records) for name, value in self._records[key].items()}
        self._resumed_from = step

    def begin(self, now: float) -> None:
        """Training starts at `now` (seconds of a monotonic clock)."""
        self._started = now
        self._seconds_before = float(self._last.get("seconds", 0.0))

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
        self._records[step] |= known | {"seconds": round(self._seconds_before + now - self._started, 3), "time": time.isoformat(timespec="seconds")}
        if memory_gib:
            self._records[step]["gpuMemoryGiB"] = round(memory_gib, 3)
        self._last |= self._records[step]

    def last(self, name: str) -> float | None:
        """The newest known value, for example of loss or evalLoss."""
        return self._last.get(name)

    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss."""
        evaluated = [(record["evalLoss"], step) for step, record in self._records.items() if "evalLoss" in record]
        return min(evaluated)[1] if evaluated else None

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
