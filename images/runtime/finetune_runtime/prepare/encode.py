"""Token ids of rows, made by the very template object that ms-swift trains with."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.labels import IGNORED, prompt_length

from .faults import Fault, RowError
from .identify import Identity
from .rows import Message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """One row as the training loop sees it; both lists have one entry a token."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trainable(self) -> int:
        """Tokens that the loss counts."""
        return sum(label != IGNORED for label in self.labels)

    def prompt_ids(self) -> list[int]:
        """What stands before the first trainable token of the last assistant turn: the prompt that serving must reproduce."""
        return self.input_ids[: prompt_length(self.labels)]


class Encoder:
    """ms-swift's template of a model, in training mode."""

    def __init__(self, source: str, directory: Path, identity: Identity, max_length: int) -> None:
        self.template = _load(source, directory, identity)
        self.tokenizer = self.template.tokenizer
        context = self.template.model_info.max_model_len
        # Above the model's own context the positions mean nothing to it.
        self.limit, self._limit_is = min((max_length, "training.maxLength"), (context or max_length, "the model's context length"))

    def encode(self, messages: list[Message]) -> Encoded:
        """Raises RowError for a row that the template refuses, that is too long or that leaves nothing to learn."""
        encoded = self.tokens(messages)
        if len(encoded.input_ids) > self.limit:
            raise RowError(Fault.LENGTH, f"{len(encoded.input_ids)} tokens, {self._limit_is} allows {self.limit}")
        if not encoded.trainable:
            raise RowError(Fault.UNTRAINABLE, "no token of the answer counts for the loss")
        return encoded

    def tokens(self, messages: list[Message]) -> Encoded:
        """A conversation of any length. Raises RowError when the template refuses it."""
        meta = self.template.template_meta
        rounds = sum(message["role"] == "user" for message in messages)
        if rounds > 1 and not meta.support_multi_round:
            raise RowError(Fault.TEMPLATE, f"the template {meta.template_type} takes one question and one answer; the row has {rounds}")
        try:
            row = self.template.encode({"messages": messages})
        except (AssertionError, ValueError, TypeError, KeyError, IndexError) as error:
            raise RowError(Fault.TEMPLATE, f"the template {meta.template_type} refuses the row: {error}") from error
        return Encoded(list(row["input_ids"]), list(row["labels"]))

    def decode(self, ids: list[int]) -> str:
        """The exact text of token ids, markers included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _load(source: str, directory: Path, identity: Identity) -> Any:
    """The Template of ms-swift 4.6. Only configuration and tokenizer are read."""
    from swift.arguments import BaseArguments

    try:
        # The arguments object, and not get_template(): it also derives the loss mask from the template as `swift sft` does.
        args = BaseArguments(model=str(directory), model_type=identity.type, template=identity.template, load_args=False)
        template = args.get_template(args.get_model_processor(load_model=False)[1])
    except Exception as error:  # broken tokenizer files raise anything from KeyError to a panic of the Rust tokenizer
        log.exception("the model cannot be opened")
        cause = str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__
        raise StepError(
            Exit.MODEL_INVALID, Reason.MODEL_INVALID, f"The configuration or tokenizer of {source} cannot be opened as {identity.type}: {cause}"
        ) from error
    if template.task_type != "causal_lm":
        raise StepError(
            Exit.MODEL_INVALID,
            Reason.MODEL_INVALID,
            f"The model type {identity.type} is for {template.task_type}, which answers nothing: set spec.model.type to a chat model's type.",
        )
    template.set_mode("train")
    template.max_length = None  # lengths are judged here, where the row can be named
    return template
