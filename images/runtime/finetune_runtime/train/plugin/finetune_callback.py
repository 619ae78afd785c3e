"""Trainer callback `finetune`: tells the supervisor what happens, stages checkpoints for upload, stops at a step's end on SIGTERM.

Of several processes the first one tells and stages, and whatever ends a step, an evaluation or the training is agreed on: one that stopped alone would leave
the others waiting.

ms-swift loads it with --external_plugins and --callbacks finetune. It must never fail the training for a reason of its own.
"""

import json
import logging
import math
import os
import signal
import time
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from swift.callbacks import TrainerCallback, callbacks_map

from finetune_runtime.train.answers import ANSWERS, PROMPTS
from finetune_runtime.train.divergence import WEIGHTS
from finetune_runtime.train.early_stopping import EARLY_STOPPING, Rule
from finetune_runtime.train.events import EVENTS_FD, STAGING, Event, Kind
from finetune_runtime.train.plugin import ranks
from finetune_runtime.train.plugin.answering import SECONDS, ask
from finetune_runtime.train.plugin.evaluation import weigh_by_tokens
from finetune_runtime.train.signals import handle_here_only
from finetune_runtime.train.staging import stage

log = logging.getLogger(__name__)

# Seconds after SIGTERM in which an evaluation may come to its end.
EVALUATION_PATIENCE = float(os.environ.get("FINETUNE_EVALUATION_PATIENCE", "60"))


class FinetuneCallback(TrainerCallback):  # type: ignore[misc]  # ms-swift is untyped
    """One instance per training process; `args`, `state` and `control` are those of transformers' TrainerCallback."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._events = os.fdopen(int(os.environ[EVENTS_FD]), "w", buffering=1)
        self._staging = Path(os.environ[STAGING])
        self._prompts = os.environ.get(PROMPTS)
        self._early = Rule.parse(os.environ.get(EARLY_STOPPING))
        self._stopped_early = False
        self._stop_since: float | None = None  # seconds of a monotonic clock: when SIGTERM came
        self._evaluating = False
        self._evaluation_left = False  # the training is over, and its last evaluation is not
        self._memory = 0.0  # GiB reserved at most, of several GPUs on the fullest

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        # On CPUs with AVX512-BF16 bitsandbytes 0.50 repacks 4-bit weights in an evaluation and then multiplies them without gradients until the
        # next save: steps in between learn from part of the gradient, and a resumed run, which has not evaluated, learns something else.
        for module in self.trainer.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        weigh_by_tokens(self.trainer)
        # Only now is there something to save. Before, SIGTERM ends the process at once, as it should.
        handle_here_only(signal.SIGTERM, self._on_sigterm)
        self._send(Kind.BEGIN, state)
        self._evaluation_left = state.global_step >= state.max_steps

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self._evaluation_left:
            self._only_evaluate(state)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        told, self._memory = ranks.largest(self._stop_since is not None, _reserved())
        if told:
            self._stop_since = self._stop_since or time.monotonic()
            control.should_save = True
            control.should_training_stop = True
        # Whatever is saved has been logged up to its very step, so that the supervisor knows that it is sound; an evaluation may end in a save too.
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        if control.should_save and not control.should_evaluate:
            self._send(Kind.SAVING, state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._evaluating:
            self._evaluating = True
            self._send(Kind.EVALUATING, state)
        late = self._stop_since is not None and time.monotonic() - self._stop_since > EVALUATION_PATIENCE
        if any(ranks.largest(late)):
            self._leave_evaluation(args, state, control)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._send(Kind.LOG, state, values=values)

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluating = False
        if self._early and any(ranks.largest(self._early.stops([entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]))):
            self._stopped_early = control.should_save = control.should_training_stop = True
        self._send(Kind.SAVING if control.should_save else Kind.EVALUATED, state)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        ranks.largest(0)  # each process has a file of its own in the checkpoint
        if not _finite(self.trainer.model):
            self._send(Kind.LOG, state, values={WEIGHTS: math.nan})  # the supervisor ends the training
        elif state.is_world_process_zero:
            path = stage(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._staging)
            over = (self._stopped_early or state.global_step >= state.max_steps) and not self._evaluation_left
            self._send(Kind.SAVED, state, path=str(path), final=over)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self._evaluation_left:  # there was no epoch to begin
            self._only_evaluate(state)
        self._end(state)

    def _end(self, state: Any) -> None:
        # The last checkpoint is staged: whatever happens to the answers, nothing is lost.
        at_its_end = self._stopped_early or state.global_step >= state.max_steps
        if at_its_end and self._stop_since is None and self._prompts and state.is_world_process_zero:
            self._answer(state, Path(self._prompts))
        self._send(Kind.END, state)

    def _on_sigterm(self, *_: Any) -> None:
        self._stop_since = time.monotonic()

    def _answer(self, state: Any, prompts: Path) -> None:
        """Leaves answers to validation prompts for the report page, or a line in the log."""
        # The time limit is looked at between two tokens; what does not even get there must not hold the job up.
        watchdog = Timer(2 * SECONDS, os._exit, [0])
        watchdog.daemon = True
        watchdog.start()
        try:
            conversations = json.loads(prompts.read_text(encoding="utf-8"))
            if not conversations:
                return
            self._send(Kind.ANSWERING, state)
            answers = ask(
                self.trainer.model,
                self.trainer.template,
                conversations,
                step=state.global_step,
                stop=lambda: self._stop_since is not None,
                precision=self.trainer.compute_loss_context_manager(),
            )
            partial = prompts.with_suffix(".partial")
            partial.write_text(answers.model_dump_json(by_alias=True), encoding="utf-8")
            partial.replace(prompts.with_name(ANSWERS))
        except Exception as error:  # noqa: BLE001  a page without answers is no reason to lose a training
            log.warning("the report has no answers: %s: %s", type(error).__name__, error)
        finally:
            watchdog.cancel()

    def _only_evaluate(self, state: Any) -> None:
        """What an eviction left of a training whose last step is safe. It ends here: ms-swift would train one step too many."""
        if self.trainer.eval_dataset is not None:
            self.trainer.evaluate()
        self._end(state)
        os._exit(0)

    def _leave_evaluation(self, args: Any, state: Any, control: Any) -> None:
        """An evaluation may take longer than an eviction leaves. The step before it is whole, so it is saved from here and the rest left: to the next
        process, which begins with it. That one leaves it for good, or a training on machines that go soon would never end.
        """
        if not self._evaluation_left:
            self._evaluation_left = state.global_step >= state.max_steps
            self._send(Kind.SAVING, state)
            self.trainer._save_checkpoint(self.trainer.model, trial=None)  # noqa: SLF001  there is no other way to save in the middle of an evaluation
            self.on_save(args, state, control)
        self._send(Kind.END, state)
        os._exit(0)

    def _send(self, kind: Kind, state: Any, *, values: dict[str, float] | None = None, path: str = "", final: bool = False) -> None:
        if state.is_world_process_zero:
            memory = max(self._memory, _reserved())
            event = Event(kind, state.global_step, state.max_steps, state.epoch or 0.0, values or {}, memory, path, final)
            self._events.write(event.encode() + "\n")


def _finite(model: Any) -> bool:
    """Whether all that is trained is finite: the last update may have broken it, which no loss shows yet."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters() if weight.requires_grad)


def _reserved() -> float:
    """GiB that this process had reserved at most on its GPU."""
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0


callbacks_map["finetune"] = FinetuneCallback
