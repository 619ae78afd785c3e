"""Trainer callback `finetune`: tells the supervisor what happens, stages checkpoints for upload, stops at a step's end on SIGTERM.

ms-swift loads it with --external_plugins and --callbacks finetune. It must never fail the training for a reason of its own.
"""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import TrainerCallback, callbacks_map

from finetune_runtime.train.events import EVENTS_FD, STAGING, Event, Kind
from finetune_runtime.train.staging import stage


class FinetuneCallback(TrainerCallback):  # type: ignore[misc]  # ms-swift is untyped
    """One instance per training process; `args`, `state` and `control` are those of transformers' TrainerCallback."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._events = os.fdopen(int(os.environ[EVENTS_FD]), "w", buffering=1)
        self._staging = Path(os.environ[STAGING])
        self._stop = False
        self._evaluating = False

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        # Only now is there something to save. Before, SIGTERM ends the process at once, as it should.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._send(Kind.BEGIN, state)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop:
            control.should_save = True
            control.should_training_stop = True
        if control.should_save and not control.should_evaluate:
            self._send(Kind.SAVING, state)

    def on_prediction_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if not self._evaluating:
            self._evaluating = True
            self._send(Kind.EVALUATING, state)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._send(Kind.LOG, state, values=values)

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluating = False
        self._send(Kind.SAVING if control.should_save else Kind.EVALUATED, state)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = stage(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._staging)
            self._send(Kind.SAVED, state, path=str(path))

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._send(Kind.END, state)

    def _on_sigterm(self, *_: Any) -> None:
        self._stop = True

    def _send(self, kind: Kind, state: Any, *, values: dict[str, float] | None = None, path: str = "") -> None:
        if state.is_world_process_zero:
            memory = sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())) / 2**30
            event = Event(kind, state.global_step, state.max_steps, state.epoch or 0.0, values or {}, memory, path)
            self._events.write(event.encode() + "\n")


callbacks_map["finetune"] = FinetuneCallback
