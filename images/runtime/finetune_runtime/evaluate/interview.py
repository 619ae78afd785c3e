"""Who is asked what: every prompt of every gate, one request at a time, so that times are those of one user on an idle server."""

import logging
from collections.abc import Sequence

from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.evaluation import Evaluation, EvaluationPrompt, Generation
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.report.evaluation_data import Answer, Asked

from .client import Client, Limits, UnansweredError
from .expectation import misses
from .time_limit import time_limit

log = logging.getLogger(__name__)

Prompts = Sequence[EvaluationPrompt]
CHECK_SECONDS = 10.0
_WARM_UP = [{"role": "user", "content": "Hello"}]


def interview(config: EvaluateConfig, prompts: Sequence[Prompts], limits: Limits | None = None) -> tuple[list[list[Asked]], dict[str, str]]:
    """What all models say, by gate and prompt, and why a model gave no answers to compare with, by its name (base, current).

    Raises StepError when the candidate cannot be asked.
    """
    gates, unasked = config.gates, {}
    try:
        said = {"candidate": _ask_all(Client(config.candidate.url, config.candidate.model, limits=limits), gates, prompts, "candidate")}
    except UnansweredError as error:
        raise _unavailable(config, error) from error
    for name, target in (("base", config.base), ("current", config.current)):
        if target is None:
            if name == "base":
                unasked[name] = "the engine does not serve the base model beside this version"
            continue
        try:
            said[name] = _ask_all(Client(target.url, target.model, limits=limits), gates, prompts, name)
        except UnansweredError as error:
            log.warning("%s is left out of the comparison: %s", name, error.cause)
            unasked[name] = error.cause
    return [_joined(prompts[place], {name: answers[place] for name, answers in said.items()}) for place in range(len(gates))], unasked


def _ask_all(client: Client, gates: Sequence[Evaluation], prompts: Sequence[Prompts], name: str) -> list[list[list[Answer]]]:
    """Answers by gate, prompt and repeat."""
    client.check_served()
    # What the first request of all pays for, such as compiled kernels, no user pays for again.
    client.ask(_WARM_UP, seconds=_longest(Generation(max_tokens=8)), max_tokens=8, temperature=0)
    result = []
    for gate, asked in zip(gates, prompts, strict=True):
        answers = []
        for number, prompt in enumerate(asked, 1):
            answers.append([_ask(client, prompt, gate.generation, repeat) for repeat in range(gate.repeats)])
            log.info("%s: prompt %d of %d (%s), %d of %d answers met", name, number, len(asked), prompt.name, _met(answers[-1]), gate.repeats)
        result.append(answers)
    return result


def _ask(client: Client, prompt: EvaluationPrompt, generation: Generation, repeat: int) -> Answer:
    answer = client.ask(
        prompt.conversation(),
        seconds=_longest(generation),
        max_tokens=generation.max_tokens,
        temperature=float(generation.temperature),
        top_p=float(generation.top_p),
        seed=generation.seed + repeat,
    )
    return answer if answer.refused else answer.model_copy(update={"misses": _misses(prompt, answer)})


def _misses(prompt: EvaluationPrompt, answer: Answer) -> list[str]:
    try:
        with time_limit(CHECK_SECONDS):
            return misses(prompt.expect, answer.text, answer.seconds)
    except TimeoutError:  # some regular expressions try more ways through a text than there is time in the world
        return [f"cannot be checked within {CHECK_SECONDS:g} s: simplify regex, or the patterns of jsonSchema"]


def _longest(generation: Generation) -> float:
    """Seconds for an answer: nobody waits for less than a token a second."""
    return 60.0 + generation.max_tokens


def _joined(prompts: Prompts, said: dict[str, list[list[Answer]]]) -> list[Asked]:
    return [
        Asked.model_validate(
            {
                "name": prompt.name,
                "conversation": prompt.conversation(),
                "expect": prompt.expect,
                **{name: answers[number] for name, answers in said.items()},
            }
        )
        for number, prompt in enumerate(prompts)
    ]


def _met(answers: Sequence[Answer]) -> int:
    return sum(answer.met for answer in answers)


def _unavailable(config: EvaluateConfig, error: UnansweredError) -> StepError:
    message = f"Version {config.version} cannot be evaluated: {error.cause}."
    if error.final:
        return StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{message} Look at the endpoint's servedName and engine.")
    return StepError(
        Exit.CRASH, Reason.ENDPOINT_UNAVAILABLE, f"{message} Look at the log of the version's pods, and at network policies between them and this one."
    )
