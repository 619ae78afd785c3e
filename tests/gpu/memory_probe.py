"""Trainer callback `memory`: the allocator's peaks after loading, training and evaluating, as JSON into the file that MEMORY_PROBE names."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import TrainerCallback, callbacks_map


class MemoryProbe(TrainerCallback):  # type: ignore[misc]  # ms-swift is untyped
    """Bytes reserved and allocated at most in each phase, and those that the driver counts for the whole GPU."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._peaks: dict[str, dict[str, int]] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._note("loading")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note("training")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._note("evaluation")

    def _note(self, phase: str) -> None:
        cuda = torch.cuda
        free, total = cuda.mem_get_info() if cuda.is_available() else (0, 0)
        found = {"reserved": cuda.max_memory_reserved(), "allocated": cuda.max_memory_allocated(), "driver": total - free}
        before = self._peaks.get(phase, {})
        self._peaks[phase] = {name: max(size, before.get(name, 0)) for name, size in found.items()}
        Path(os.environ["MEMORY_PROBE"]).write_text(json.dumps(self._peaks))
        if cuda.is_available():
            # What is reserved stays so, as in a real run: each phase has all that the ones before left in the allocator's cache.
            cuda.reset_peak_memory_stats()


callbacks_map["memory"] = MemoryProbe
