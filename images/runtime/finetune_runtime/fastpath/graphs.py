"""Micro-batches as CUDA graphs: at a thousand tokens the CPU cannot launch kernels as fast as the GPU works them off, and a graph is one launch.

One shape of a micro-batch is two graphs, forward and backward, because the trainer decides in between by what the gradients are multiplied. A shape is captured
when it comes the second time: the first time, without a graph, has compiled its kernels. All graphs share one pool of memory, which is safe because a backward
graph always follows its forward graph and nothing of a micro-batch outlives it. What they hold is not free for anything else, so there are `limit` of them.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from finetune_runtime.handled import told

from .batch import Batch
from .model import FastModel, Tape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Captured:
    """inputs: tensors at the places that the graphs read; scale float32 [1], loss float32 []."""

    forward: Any
    backward: Any
    inputs: dict[str, torch.Tensor]
    scale: torch.Tensor
    loss: torch.Tensor


class Graphs:
    """Runs micro-batches of one model, those of few shapes as graphs. The adapters' parameters and gradients must never move."""

    def __init__(self, model: FastModel, limit: int) -> None:
        self._model, self._limit, self._keep = model, limit, list(model.keep)
        self._seen: set[tuple[Any, ...]] = set()
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._pool: Any = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._captured)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, "_Captured | Tape"]:
        """As FastModel.forward."""
        key = self._key(batch)
        if key is None:
            return self._eager(batch)
        if self._keep != self._model.keep:  # less is kept since memory ran out
            self.release()
        captured = self._captured.get(key)
        if captured is None and len(self._captured) < self._limit and key in self._seen:
            captured = self._try_to_capture(key, batch)
        self._seen.add(key)
        if captured is None:
            return self._eager(batch)
        for name, target in captured.inputs.items():
            target.copy_(batch[name], non_blocking=True)
        captured.forward.replay()
        return captured.loss.clone(), captured

    def backward(self, left: "_Captured | Tape", scale: torch.Tensor) -> None:
        """As FastModel.backward."""
        if isinstance(left, _Captured):
            left.scale.copy_(scale)
            left.backward.replay()
        else:
            self._model.backward(left, scale)

    def release(self) -> None:
        """Gives the graphs' memory back until they are captured again."""
        self._captured.clear()
        self._pool, self._keep = None, list(self._model.keep)
        torch.cuda.empty_cache()

    def clear(self) -> None:
        """Gives it back for good."""
        self._limit = 0
        self.release()

    def _eager(self, batch: Batch) -> tuple[torch.Tensor, Tape]:
        try:
            return self._model.forward(batch)
        except torch.OutOfMemoryError:
            if not self._captured:
                raise
        # The supervisor takes the error's own words in the log for the end of the process.
        log.warning("no more CUDA graphs: there is no room for what runs without")
        self.clear()
        return self._model.forward(batch)

    def _key(self, batch: Batch) -> tuple[Any, ...] | None:
        """What two micro-batches of one graph have in common; None for one that runs without."""
        if not batch["graph"] or not self._limit or not self._model.word.is_cuda:
            return None
        shapes = ((name, tuple(value.shape)) if torch.is_tensor(value) else (name, value) for name, value in sorted(batch.items()))
        return tuple(shapes)

    def _try_to_capture(self, key: tuple[Any, ...], batch: Batch) -> _Captured | None:
        torch.cuda.empty_cache()  # what runs without graphs has left is not free for the pool
        try:
            self._captured[key] = self._capture(batch)
        except Exception as error:  # noqa: BLE001  most often memory that ran out: without graphs it may do
            log.warning("no CUDA graphs: this one could not be captured\n%s", told(error))
            self.clear()
            return None
        return self._captured[key]

    @torch.no_grad()
    def _capture(self, batch: Batch) -> _Captured:
        inputs = {name: value.clone() for name, value in batch.items() if torch.is_tensor(value)}
        scale = torch.ones(1, dtype=torch.float32, device=self._model.word.device)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Only what this thread does is looked at: the data loader's own thread pins memory meanwhile.
        with torch.cuda.graph(forward, pool=self._pool, capture_error_mode="thread_local"):
            loss, tape = self._model.forward_once(batch | inputs)
        self._pool = forward.pool()
        with torch.cuda.graph(backward, pool=self._pool, capture_error_mode="thread_local"):
            self._model.backward_once(tape, scale)
        return _Captured(forward, backward, inputs, scale, loss)
