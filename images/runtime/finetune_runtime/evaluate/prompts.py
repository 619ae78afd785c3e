"""The prompts of a gate: those that stand in it, and those of its source, checked line by line before anybody is asked."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.evaluation import Evaluation, EvaluationPrompt
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.dataset import fetch_dataset
from finetune_runtime.sources.files import SourceFile

from .expectation import fault, shown

MAX_PROMPTS = 2000  # of a gate: asked three times each by three models, they take hours
MAX_BYTES = 64 * 2**20  # of a file
_FORM = 'Each line is one JSON object as in evaluation.prompts, such as {"name": "hours", "prompt": "When are you open?", "expect": {"contains": ["8"]}}.'


def load(config: EvaluateConfig, store: Store, scratch: Path) -> list[list[EvaluationPrompt]]:
    """Prompts of every gate, in order. `scratch`: for downloads. Raises StepError: InvalidConfig or DataInvalid with place, cause and cure."""
    shutil.rmtree(scratch, ignore_errors=True)  # a restarted container finds what its predecessor left
    return [_gate(gate, store, scratch / str(place)) for place, gate in enumerate(config.gates)]


def _gate(gate: Evaluation, store: Store, scratch: Path) -> list[EvaluationPrompt]:
    for prompt in gate.prompts:
        if why := _wrong(prompt):
            raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"evaluation.prompts[{prompt.name}]: {why}. Correct the prompt.")
    found, places = list(gate.prompts), {prompt.name: "evaluation.prompts" for prompt in gate.prompts}
    if len(places) < len(found):
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, "evaluation.prompts: two prompts have the same name. Give each its own.")
    if source := gate.prompts_from:
        for place, prompt in islice(_read(source.source, store, scratch), source.samples):
            if prompt.name in places:
                raise _invalid(f"{place}: the name {prompt.name} is taken already, at {places[prompt.name]}. Give every prompt its own name.")
            if len(found) == MAX_PROMPTS:
                raise _invalid(f"{source.source} has more than {MAX_PROMPTS:,} prompts. Take so many of them with promptsFrom.samples.")
            found.append(prompt)
            places[prompt.name] = place
        if len(found) == len(gate.prompts):
            raise StepError(Exit.DATA_INVALID, Reason.DATASET_EMPTY, f"{source.source} has no prompts. {_FORM}")
    return found


def _read(source: str, store: Store, scratch: Path) -> Iterator[tuple[str, EvaluationPrompt]]:
    """Every prompt with its place, as it is asked for: what is behind the last one that is taken need not be right."""
    for file in fetch_dataset(source, store, scratch):
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield f"{file.uri}:{number}", _parse(f"{file.uri}:{number}", line)


def _lines(file: SourceFile) -> Iterator[bytes]:
    size = file.path.stat().st_size
    if size > MAX_BYTES:
        raise _invalid(f"{file.uri} has {size / 2**20:.0f} MiB, more than the {MAX_BYTES / 2**20:.0f} MiB that prompts may have: is it another file?")
    with file.path.open("rb") as lines:
        yield from lines


def _parse(place: str, line: bytes) -> EvaluationPrompt:
    try:
        document = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _invalid(f"{place}: not UTF-8 at byte {error.start + 1}. Save the file as UTF-8, unpacked. {_FORM}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{place}: not JSON: {error}. {_FORM}") from error
    try:
        # An expectation with a slip of the pen in its name would else expect nothing, and everything would meet it.
        prompt = EvaluationPrompt.model_validate(document, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise _invalid(f"{place}: {'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}. {_FORM}") from error
    if why := _wrong(prompt):
        raise _invalid(f"{place}: {why}. Correct the line, or remove it.")
    return prompt


def _wrong(prompt: EvaluationPrompt) -> str:
    if bool(prompt.prompt.strip()) == bool(prompt.messages):
        return "a prompt has either prompt (one user message) or messages (a conversation)"
    if prompt.messages and prompt.messages[-1].role != "user":
        return f"messages ends with the turn of the {prompt.messages[-1].role}, and nobody is left to answer: end it with the user's"
    if any(message.role == "system" for message in prompt.messages[1:]) or (prompt.system and prompt.messages and prompt.messages[0].role == "system"):
        return "a conversation has one system message at most, and begins with it"
    return shown(fault(prompt.expect))


def _invalid(message: str) -> StepError:
    return StepError(Exit.DATA_INVALID, Reason.DATA_INVALID, message)
