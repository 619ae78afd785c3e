"""Trainer callback `fast_path`: where the trainer has made a plan, the steps take the fast path, or the outcome says why they do not.

ms-swift loads it with --external_plugins and --callbacks fast_path finetune. Whatever goes wrong while it is put in place, the usual path
is taken; only where memory runs out the process ends, and the next one gets a smaller plan.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import TrainerCallback, callbacks_map

from finetune_runtime.contract.fast_path import CALLBACK, FAST_PLAN, FastOutcome, FastPlan, outcome_path
from finetune_runtime.fastpath.install import FastPath
from finetune_runtime.fastpath.support import unsupported
from finetune_runtime.handled import told
from finetune_runtime.train import diagnosis
from finetune_runtime.train.plugin import ranks

log = logging.getLogger(__name__)


class FastPathCallback(TrainerCallback):  # type: ignore[misc]  # ms-swift is untyped
    """One instance per training process."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._file = Path(os.environ[FAST_PLAN]) if FAST_PLAN in os.environ else None
        self._fast = FastPath(trainer, FastPlan.model_validate_json(self._file.read_bytes())) if self._file else None
        self._kept: list[int] | None = None  # levels that the outcome has; None before the first step

    def on_init_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        if self._fast:
            self._fast.wrap_collator()
            self._fast.wrap_optimizer()

    def on_train_begin(self, args: Any, _state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        if not self._fast:
            return
        try:
            reason = unsupported(model)
            if not reason:
                model.train()
                self._fast.install(model)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:400]
            if diagnosis.out_of_memory([reason]):
                raise  # the supervisor knows smaller plans
            log.warning("the fast path could not be put in place\n%s", told(error))
        reason = ranks.first(reason)  # all processes take it, or none
        if reason:
            self._fast.remove()
            self._fast = None
        else:
            self._fast.settle()
        self._write(args, FastOutcome(used=not reason, reason=reason, device=_device()))

    def on_evaluate(self, _args: Any, _state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        # The trainer does so only in its next step, whose batches have been collated by then: those of an epoch that begins here by loaders that are
        # forked now and would take all of it for an evaluation.
        if self._fast:
            model.train()

    def on_step_end(self, args: Any, _state: Any, _control: Any, **_: Any) -> None:
        if not (self._fast and self._fast.model):
            return
        # Of several GPUs the fullest one: the rows of a step differ, and with them what a process needs.
        here = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        reserved, *levels = ranks.largest(here, *(-level for level in self._fast.model.keep))
        kept = [-int(level) for level in levels]
        # After the first step, and again when memory ran out and less is kept since.
        if self._kept != kept:
            self._kept = kept
            graphs = self._fast.graphs.count if self._fast.graphs else 0
            self._write(args, FastOutcome(used=True, device=_device(), measured_bytes=int(reserved), graphs=graphs, keep=kept))

    def _write(self, args: Any, outcome: FastOutcome) -> None:
        if args.process_index or not self._file:
            return
        target = outcome_path(self._file)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(outcome.model_dump_json(by_alias=True), encoding="utf-8")
        partial.replace(target)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


callbacks_map[CALLBACK] = FastPathCallback
