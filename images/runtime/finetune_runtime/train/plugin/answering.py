"""Answers to validation prompts by the model in place: with the adapter switched off, then on.

Greedy, in one batch, from the very token ids that the training has before an answer. Neither weights nor random numbers change.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from finetune_runtime.labels import prompt_length
from finetune_runtime.report.data import Answer, Answers, Turn

SECONDS = 60.0  # for all answers together
MAX_TOKENS = 96


class InterruptedAnswersError(Exception):
    """The pod has to end: answers are not worth its grace period."""


def ask(
    model: Any, template: Any, conversations: Sequence[list[dict[str, str]]], *, step: int, stop: Callable[[], bool], precision: AbstractContextManager[Any]
) -> Answers:
    """Answers to the last turn of each conversation. `model`: a PEFT model; `template`: ms-swift's, in training mode; `precision`: as the evaluation has it.

    Raises InterruptedAnswersError once `stop` says so, and whatever the model raises.
    """
    prompts = [_prompt(template, messages) for messages in conversations]
    with _evaluating(model), precision:
        with model.disable_adapter():
            base = _generate(model, template, prompts, stop)
        tuned = _generate(model, template, prompts, stop)
    answers = [
        Answer(prompt=[Turn.model_validate(message) for message in messages[:-1]], expected=messages[-1]["content"], base=before, tuned=after)
        for messages, before, after in zip(conversations, base, tuned, strict=True)
    ]
    return Answers(step=step, max_tokens=MAX_TOKENS, answers=answers)


class _Until(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Ends the generation after a time, or when `stop` says so."""

    def __init__(self, seconds: float, stop: Callable[[], bool]) -> None:
        self._end, self._stop = time.monotonic() + seconds, stop

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        over = self._stop() or time.monotonic() > self._end
        return torch.full((input_ids.shape[0],), over, device=input_ids.device, dtype=torch.bool)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, gradients and gradient checkpointing (which is for training mode only), and everything as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        model.train(training)


def _prompt(template: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids before the first token of the last answer that the loss counts."""
    row = template.encode({"messages": [dict(message) for message in messages]})
    return list(row["input_ids"][: prompt_length(row["labels"])])


def _generate(model: Any, template: Any, prompts: list[list[int]], stop: Callable[[], bool]) -> list[str]:
    tokenizer = template.tokenizer
    ends = {template.template_meta.stop_token_id, tokenizer.eos_token_id} - {None}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    longest = max(map(len, prompts))
    # Padded on the left, so that every answer begins behind its prompt.
    ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=_greedy(padding, ends),
        stopping_criteria=StoppingCriteriaList([_Until(SECONDS / 2, stop)]),
    )
    if stop():
        raise InterruptedAnswersError("the pod has to end")
    return [_text(tokenizer, answer[longest:].tolist(), ends) for answer in output]


def _greedy(padding: int, ends: set[int]) -> GenerationConfig:
    """What stays unset is taken from the model's own configuration: sampling and penalties, which tell nothing about the training, are set."""
    return GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        pad_token_id=padding,
        eos_token_id=sorted(ends),
    )


def _text(tokenizer: Any, ids: list[int], ends: set[int]) -> str:
    """The text up to its end; one that has none is marked as cut off."""
    end = next((number for number, token in enumerate(ids) if token in ends), None)
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return text if end is not None else f"{text} [...]"
