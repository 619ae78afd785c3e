"""Validation prompts that the model answers at the end of the training, for the report page: which, and where the answers are left."""

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_runtime.contract.artefact import ANSWERS_FILE

PROMPTS = "FINETUNE_PROMPTS"  # environment variable: file with the conversations; the callback leaves ANSWERS beside it
ANSWERS = ANSWERS_FILE
_COUNT = 4
_LOOKED_AT = 1000  # rows; a validation set may be large, and any few of its rows serve
_MAX_PROMPT_CHARACTERS = 1500


def offer(validation: Path, seed: int, directory: Path) -> dict[str, str]:
    """Writes conversations of the validation rows to `directory`; returns what the training process has to find in its environment."""
    with validation.open(encoding="utf-8") as rows:
        chosen = choose((json.loads(row)["messages"] for row in rows), seed)
    directory.mkdir(parents=True, exist_ok=True)
    prompts = directory / "prompts.json"
    prompts.write_text(json.dumps(chosen, ensure_ascii=False), encoding="utf-8")
    return {PROMPTS: str(prompts)}


def choose(conversations: Iterable[list[dict[str, Any]]], seed: int) -> list[list[dict[str, Any]]]:
    """A few conversations that end with an answer to a short prompt, the same ones for the same seed, in their order."""
    fit = [messages for messages in islice(conversations, _LOOKED_AT) if _fits(messages)]
    picked = random.Random(seed).sample(range(len(fit)), min(_COUNT, len(fit)))  # noqa: S311  reproducible on purpose, guards nothing
    return [fit[number] for number in sorted(picked)]


def _fits(messages: list[dict[str, Any]]) -> bool:
    *prompt, answer = messages
    asked = any(message["role"] == "user" for message in prompt)
    return asked and answer["role"] == "assistant" and sum(len(message["content"]) for message in prompt) <= _MAX_PROMPT_CHARACTERS
