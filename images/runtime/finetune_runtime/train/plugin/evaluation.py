"""The evaluation loss as the mean over all trained tokens of all rows, however many of them are computed at a time and by however many processes.

transformers takes the mean of the batches' means, in which a batch of few tokens counts as much as one of many: with other rows at a time, as on another GPU
or after an out-of-memory error, the same weights would have another loss, and with it another best checkpoint.
"""

import functools
from typing import Any

import torch

from finetune_runtime.fastpath.batch import FAST, IGNORED, first


def weigh_by_tokens(trainer: Any) -> None:
    """From now on `eval_loss` of ms-swift's `trainer` is sum(loss of a token) / tokens, in nats, over the evaluation's rows, each counted once.

    ms-swift itself sums what is in `custom_metrics` over all processes, and its value takes the place of the one that transformers has logged.
    """
    original = trainer.compute_loss

    @functools.wraps(original)
    def compute_loss(model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if trainer.model.training:
            return original(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        tokens = _count_once(inputs, _rows(trainer, len(inputs["labels"])))
        # Told the number of tokens, which is that of all processes, ms-swift would not return the mean over those of this one.
        found = original(model, inputs, return_outputs=return_outputs)
        loss = found[0] if return_outputs else found
        trainer.custom_metrics["eval"]["loss"].update(loss.detach().float().expand(tokens))  # of no tokens it is no number, and counts nothing
        return found

    trainer.compute_loss = compute_loss


def _rows(trainer: Any, rows: int) -> int:
    """How many of a batch's rows are there for the first time: accelerate repeats rows at the end, so that all processes have equally many."""
    loader = trainer.accelerator.gradient_state
    if not loader.end_of_dataloader or loader.remainder <= 0:
        return rows
    return int(min(max(loader.remainder - trainer.args.process_index * rows, 0), rows))


def _count_once(inputs: dict[str, Any], rows: int) -> int:
    """Leaves the tokens of the first `rows` rows to the loss and returns their number. Nothing changes its shape, which ms-swift has made logits for."""
    labels = inputs["labels"]
    tokens = int((labels[:rows, 1:] != IGNORED).sum())
    if rows < len(labels):
        inputs["labels"] = torch.cat([labels[:rows], torch.full_like(labels[rows:], IGNORED)])
        if tokens and FAST in inputs:
            inputs[FAST] = first(inputs[FAST], tokens)
    return tokens
