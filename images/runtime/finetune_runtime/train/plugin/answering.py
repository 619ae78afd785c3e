"""Answers to validation prompts by the model in place: with the adapter switched off, then on.

Greedy, in one batch, from the very token ids that the training has before an answer. Neither weights nor random numbers change.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from finetune_runtime.labels import prompt_length
from finetune_runtime.report.data import CUT, Answer, Answers, Turn

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
        Answer(
            prompt=[Turn.model_validate(message) for message in messages[:-1]],
            expected=messages[-1]["content"],
            base=before.text,
            tuned=after.text,
            prompt_tokens=prompt,
            tokens=after.tokens,
            logprobs=after.logprobs,
        )
        for messages, prompt, before, after in zip(conversations, prompts, base, tuned, strict=True)
    ]
    return Answers(step=step, max_tokens=MAX_TOKENS, answers=answers)


@dataclass(frozen=True)
class _Said:
    """An answer up to its end: token ids, and the log probability of each."""

    text: str
    tokens: list[int]
    logprobs: list[float]


class _Likelihoods(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Changes nothing and remembers how likely the next token is. Greedy generation takes the likeliest one."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  transformers' signature
        self.steps.append(scores.float().log_softmax(-1).amax(-1).cpu())
        return scores


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
        with torch.no_grad(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        model.train(training)


def _prompt(template: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids before the first token of the last answer that the loss counts."""
    row = template.encode({"messages": [dict(message) for message in messages]})
    return list(row["input_ids"][: prompt_length(row["labels"])])


def _generate(model: Any, template: Any, prompts: list[list[int]], stop: Callable[[], bool]) -> list[_Said]:
    tokenizer = template.tokenizer
    ends = {template.template_meta.stop_token_id, tokenizer.eos_token_id} - {None}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    longest = max(map(len, prompts))
    # Padded on the left, so that every answer begins behind its prompt.
    ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    likelihoods = _Likelihoods()
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=_greedy(padding, ends),
        logits_processor=LogitsProcessorList([likelihoods]),
        stopping_criteria=StoppingCriteriaList([_Until(SECONDS / 2, stop)]),
    )
    if stop():
        raise InterruptedAnswersError("the pod has to end")
    found = torch.stack(likelihoods.steps, dim=1).tolist()
    return [_said(tokenizer, answer[longest:].tolist(), logprobs, ends) for answer, logprobs in zip(output, found, strict=True)]


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


def _said(tokenizer: Any, ids: list[int], logprobs: list[float], ends: set[int]) -> _Said:
    """The answer up to its end; one that has none is marked as cut off."""
    end = next((number for number, token in enumerate(ids) if token in ends), None)
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return _Said(text if end is not None else f"{text}{CUT}", ids[:end], [round(value, 5) for value in logprobs[:end]])
