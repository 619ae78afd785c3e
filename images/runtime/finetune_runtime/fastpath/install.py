"""Puts the fast path into ms-swift's trainer, and takes it out again.

Four methods of live objects are replaced, each by one that asks whether this is training and else does what it always did:

* the language model's forward: the micro-batch by hand, its loss as one node for the trainer's backward(); on small cards evaluations too
* the trainer's data_collator: adds batch.prepare's part to every batch
* the trainer's training_step: counts micro-batches, and sums gradients over GPUs after the last one of a step
* the trainer's get_use_logits_to_keep: ms-swift would wait for the GPU to cut labels that are not looked at here
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from finetune_runtime.contract.fast_path import FastPlan

from . import batch as batches
from .graphs import Graphs
from .model import FastModel
from .ops.dropout import word_of
from .optimizer import AdamW8bit
from .support import adapter_name, language_model


@dataclass
class FastPath:
    """The fast path in one training process."""

    trainer: Any
    plan: FastPlan
    model: FastModel | None = None
    graphs: Graphs | None = None
    _language: Any = None
    _embedding: torch.Tensor | None = None
    _micro: int = 0  # micro-batches of this step so far
    _restore: list[tuple[Any, str, Any]] = field(default_factory=list)
    _anchor: torch.Tensor | None = None

    @property
    def _evaluates(self) -> bool:
        """Whether evaluations are done here too: where the embedding had to go there is no room for all logits of a row at once."""
        return self.plan.embedding_on_cpu

    def wrap_collator(self) -> None:
        """Before the trainer makes its data loader, which takes the collator along."""
        original = self.trainer.data_collator

        def collate(rows: Any) -> Any:
            batch = original(rows)
            if self.model and "labels" in batch and (self._language.training or self._evaluates):
                graphs = batches.shapes(self.plan) if self._language.training else None
                batch[batches.FAST] = batches.prepare(batch, graphs, self._embedding)
            return batch

        self.trainer.data_collator = collate

    def wrap_optimizer(self) -> None:
        """Before the trainer makes its optimizer."""
        if self.plan.optimizer != "adamw_8bit":
            return
        maker = self.trainer.optimizer_callback
        original = maker.create_optimizer

        def create_optimizer(*args: Any, **kwargs: Any) -> AdamW8bit:
            groups = [group for group in original(*args, **kwargs).param_groups if group["params"]]
            known = [{name: group[name] for name in ("params", "lr", "betas", "eps", "weight_decay")} for group in groups]
            self.trainer.optimizer = AdamW8bit(known, lambda: self.model.adapters if self.model else None, self.trainer.args.seed)
            return self.trainer.optimizer

        maker.create_optimizer = create_optimizer

    def install(self, model: Any) -> None:
        """From now on the steps of `model`, which must be supported, take the fast path. Raises what goes wrong, with nothing left behind."""
        self._language = language_model(model)
        try:
            if self.plan.embedding_on_cpu:
                self._move_embedding(self._language.model.embed_tokens)  # first: the rest needs the room
            self.model = FastModel(self._language, self.plan, adapter_name(self._language.model.layers[0].self_attn.q_proj))
            self.graphs = Graphs(self.model, self.plan.max_graphs + 1)  # one more for rows that are all full
            self._anchor = torch.zeros((), device=self.model.adapters.flat.device, requires_grad=True)
            self._wrap_forward()
            self._wrap_trainer(self.model)
            if dist.is_initialized():
                self._pass_by(self.trainer.model_wrapped)
        except BaseException:
            self.remove()
            raise

    def settle(self) -> None:
        """There is no way back from here: gives back DistributedDataParallel's buckets, which are as large as all gradients."""
        if dist.is_initialized():
            self.trainer.model_wrapped.reducer = self.trainer.model_wrapped.logger = None

    def remove(self) -> None:
        """The usual path again; not after `settle`."""
        while self._restore:
            owner, name, before = self._restore.pop()
            delattr(owner, name)
            if before is not None:
                object.__setattr__(owner, name, before)
        if self.model:
            self.model.adapters.release()
        if self._embedding is not None:
            embed = self._language.model.embed_tokens
            embed.weight.data = self._embedding.to(self._language.lm_head.weight.device)
        self.model = self.graphs = self._embedding = None

    # ---- the model's forward
    def _wrap_forward(self) -> None:
        original = self._language.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            batch = kwargs.pop(batches.FAST, None)
            if batch is None or not self.model:
                return original(*args, **kwargs)
            from transformers.modeling_outputs import CausalLMOutputWithPast

            if self._language.training:
                return CausalLMOutputWithPast(loss=_Loss.apply(self._anchor, self.graphs, batch))
            loss, right = self._evaluate(batch)
            self.trainer.custom_metrics["eval"]["token_acc"].update(right.tolist())  # as ms-swift does where it gets logits
            return CausalLMOutputWithPast(loss=loss)

        self._replace(self._language, "forward", forward)

    def _evaluate(self, batch: batches.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.model  # noqa: S101  for the type checker
        assert self.graphs  # noqa: S101  likewise
        try:
            return self.model.evaluate(batch)
        except torch.OutOfMemoryError:
            if not self.graphs.count:
                raise
        self.graphs.release()  # what they hold is free for nothing else
        return self.model.evaluate(batch)

    def _move_embedding(self, embed: Any) -> None:
        """To pinned memory of the host; evaluations look rows up there too."""
        if embed.weight.data_ptr() == self._language.lm_head.weight.data_ptr():
            return  # the head needs it on the GPU
        device = embed.weight.device
        table = torch.empty(embed.weight.shape, dtype=embed.weight.dtype, pin_memory=device.type == "cuda").copy_(embed.weight.data)
        self._embedding = embed.weight.data = table

        def lookup(ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.embedding(ids.cpu(), table).to(device, non_blocking=True)

        self._replace(embed, "forward", lookup)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- the trainer
    def _wrap_trainer(self, model: FastModel) -> None:
        trainer = self.trainer
        step, keeps_logits, switch = trainer.training_step, trainer.get_use_logits_to_keep, trainer.model.train

        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._micro = self._micro + 1 if model.adapters.is_open() else 0
            model.adapters.begin_step()
            model.word.fill_(word_of(trainer.args.seed, trainer.state.global_step, self._micro, trainer.args.process_index))
            loss = step(*args, **kwargs)
            if trainer.accelerator.sync_gradients and trainer.args.world_size > 1:
                dist.all_reduce(model.adapters.gradient)
                model.adapters.gradient.div_(trainer.args.world_size)  # the mean over GPUs, as DDP has it
            return loss

        def get_use_logits_to_keep(*args: Any, **kwargs: Any) -> bool:
            return not self._language.training and bool(keeps_logits(*args, **kwargs))

        def train(mode: bool = True) -> Any:
            # It walks all modules, thousands, and the trainer calls it for every micro-batch.
            return trainer.model if trainer.model.training == mode else switch(mode)

        self._replace(trainer, "training_step", training_step)
        self._replace(trainer, "get_use_logits_to_keep", get_use_logits_to_keep)
        self._replace(trainer.model, "train", train)

    def _pass_by(self, wrapped: Any) -> None:
        """`wrapped`: DistributedDataParallel, which has made the adapters of all processes equal. It would wait for gradients that autograd never sees."""
        self._replace(wrapped, "forward", wrapped.module)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        """Hides a method behind an attribute of the object itself; liger-kernel and accelerate may have done so before."""
        self._restore.append((owner, name, vars(owner).get(name)))
        object.__setattr__(owner, name, value)


class _Loss(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped
    """The one node of autograd: forward and backward of the micro-batch. anchor: a leaf that makes autograd come back to us; its gradient is of no interest."""

    @staticmethod
    def forward(context: Any, anchor: torch.Tensor, graphs: Graphs, batch: batches.Batch) -> torch.Tensor:  # noqa: ARG004  autograd's signature
        loss, context.left = graphs.forward(batch)
        context.graphs = graphs
        return loss

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[None, None, None]:
        left, context.left = context.left, None
        context.graphs.backward(left, grad.reshape(1).float())
        return None, None, None
