"""A whole micro-batch by hand: through the layers and the head, and back. No autograd graph exists inside; outside the loss is one node of one.

When memory runs out, fewer of the layers' results are kept and the piece that failed is done again; only when nothing is kept any more the error goes on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from finetune_runtime.contract.fast_path import KEEP_INPUT, FastPlan

from .adapters import GROUPS, Adapters
from .attention import Attention
from .backward import LayerBackward
from .batch import Batch, rows_of
from .frozen import Workspace
from .head import Head, KeptHead
from .layer import DecoderLayer, Kept, Pass
from .ops.dropout import Dropout

log = logging.getLogger(__name__)


@dataclass
class Tape:
    """What the forward pass leaves for the backward pass."""

    run: Pass
    kept: list[Kept]
    head: KeptHead


class FastModel:
    """Layers, head and adapters of a live model (a transformers causal language model with PEFT's adapter `name` in it), which must be supported."""

    def __init__(self, model: Any, plan: FastPlan, name: str) -> None:
        base = model.model
        first = base.layers[0].self_attn.q_proj
        self.dtype, device = base.embed_tokens.weight.dtype, first.lora_A[name].weight.device
        linear = [
            [[getattr(layer.self_attn if hasattr(layer.self_attn, member) else layer.mlp, member) for member in group] for group in GROUPS]
            for layer in base.layers
        ]
        self.adapters = Adapters(linear, name, self.dtype)
        rank, scaling = first.r[name], float(first.scaling[name])
        self.layers = [DecoderLayer(layer, index, rank, scaling) for index, layer in enumerate(base.layers)]
        self.probability = float(getattr(first.lora_dropout[name], "p", 0.0))
        self.keep = _levels(plan.keep, len(self.layers))
        self.head = Head(base.norm.weight, float(base.norm.variance_epsilon), model.lm_head.weight, plan.loss_tokens, rank)
        self._rotary, self._embedding = base.rotary_emb, base.embed_tokens
        self._workspace = Workspace(max(layer.workspace_numbers() for layer in self.layers), self.dtype, device)
        self.attention = Attention()
        self.word = torch.zeros(1, dtype=torch.int64, device=device)  # the dropout's, see ops.dropout

    @torch.no_grad()
    def forward(self, batch: Batch) -> tuple[torch.Tensor, Tape]:
        """Mean loss, float32 [], of a batch (see batch.prepare) whose tensors are on the device."""
        while True:
            try:
                return self.forward_once(batch)
            except torch.OutOfMemoryError as error:
                failure = error.with_traceback(None)  # whose frames hold what should be free
            self._keep_less(failure, range(len(self.keep)))

    @torch.no_grad()
    def backward(self, tape: Tape, scale: torch.Tensor) -> None:
        """Adds the gradients of scale [1] float32 times the loss to the adapters'. Uses up the tape."""
        grad = self.head.backward(tape.head, scale)
        for index in range(len(self.layers) - 1, -1, -1):
            step, kept = LayerBackward(self.layers[index], self.adapters.gradients[index]), tape.kept[index]
            while True:
                try:
                    passed = step(kept, grad, self.adapters.weights(index), tape.run, first=index == 0)
                    break
                except torch.OutOfMemoryError as error:
                    failure = error.with_traceback(None)
                self._keep_less(failure, range(index + 1), tape)
            tape.kept.pop()
            grad = passed or grad

    @torch.no_grad()
    def backward_once(self, tape: Tape, scale: torch.Tensor) -> None:
        """The backward pass without the way out of an out-of-memory error."""
        grad = self.head.backward(tape.head, scale)
        for index in range(len(self.layers) - 1, -1, -1):
            step = LayerBackward(self.layers[index], self.adapters.gradients[index])
            grad = step(tape.kept.pop(), grad, self.adapters.weights(index), tape.run, first=index == 0) or grad

    @torch.no_grad()
    def forward_once(self, batch: Batch) -> tuple[torch.Tensor, Tape]:
        """The forward pass without it."""
        h, run = self._begin(batch, self.probability)
        kept = []
        for index, layer in enumerate(self.layers):
            h, left = layer.forward(h, self.keep[index], self.adapters.weights(index), run)
            kept.append(left)
        loss, head = self.head.forward(h, batch.get("trained"), batch["labels"], batch["scale"])
        return loss, Tape(run, kept, head)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss, float32 [], without dropout, and which tokens were foretold, bool [trained tokens]. Never has more logits than `forward` has."""
        h, run = self._begin(batch, 0.0)
        for index, layer in enumerate(self.layers):
            h = layer.forward(h, KEEP_INPUT, self.adapters.weights(index), run)[0]
        return self.head.evaluate(h, (batch["trained"], batch["labels"], batch["scale"]))

    def _begin(self, batch: Batch, dropout: float) -> tuple[torch.Tensor, Pass]:
        h = batch["embedded"] if "embedded" in batch else F.embedding(batch["ids"], self._embedding.weight)
        h = h.to(self.dtype)
        cos, sin = (table[0].contiguous() for table in self._rotary(h[None, :1], batch["positions"][None]))
        return h, Pass(rows_of(batch), cos, sin, Dropout(dropout, self.word), self._workspace, self.attention)

    def _keep_less(self, failure: torch.OutOfMemoryError, layers: range, tape: Tape | None = None) -> None:
        """Keeps less of a quarter of the model's layers, of those given; drops all that a tape still has. Raises `failure` if that is nothing."""
        held = [index for index in layers if self.keep[index] > KEEP_INPUT]
        dropped = [kept for kept in tape.kept if kept.attention] if tape else []
        if not held and not dropped:
            raise failure
        for index in held[: max(1, len(self.layers) // 4)]:
            self.keep[index] = KEEP_INPUT
        for kept in dropped:
            kept.attention = kept.mlp = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory: %d of %d layers keep nothing but their input now, which is slower", self.keep.count(KEEP_INPUT), len(self.layers))


def _levels(keep: Sequence[int], layers: int) -> list[int]:
    """One level for each layer; the last one given is that of all that follow."""
    return [*keep, *[keep[-1]] * layers][:layers]
