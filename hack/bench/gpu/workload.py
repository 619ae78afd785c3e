"""What is trained: models of published shapes with random weights, and rows of random words of an exact number of tokens.

Speed and memory do not depend on what the weights are, only the loss does. The words are random because products of equal numbers draw less power, and a
GPU at its power limit then runs faster than a real training lets it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_runtime.contract.artefact import TRAIN_FILE
from finetune_runtime.contract.model_shape import ModelShape
from tests.gpu.measure_memory import MODELS, Architecture, make_model

TEMPLATE = "chatml"
LONG = 1024  # tokens of a long row
SHORT = (93, 373)  # least and most tokens of a short one: 233 on average
_QUESTION = "hi"


@dataclass(frozen=True)
class Trained:
    """A model on disk."""

    directory: Path
    architecture: Architecture
    shape: ModelShape

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        found: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        return found


def cut(name: str, layers: int) -> Architecture:
    """A published model with fewer layers."""
    return replace(MODELS[name], layers=layers)


def make(architecture: Architecture, directory: Path) -> Trained:
    """Writes the model; seconds for each 10 GB on a GPU."""
    return Trained(directory, architecture, make_model(architecture, directory))


def write_rows(model: Path, lengths: Sequence[int], directory: Path, *, seed: int = 0) -> Path:
    """Rows of so many tokens each, frame of the chat template included, as the training reads them. Returns the directory."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    words = _words(tokenizer)
    source = random.Random(seed)  # noqa: S311  words, not secrets
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / TRAIN_FILE).open("w") as file:
        for length in lengths:
            answer = source.choice(words).lstrip()
            # The first word has no blank before it and may be several tokens.
            answer += "".join(source.choices(words, k=length - len(tokenizer(conversation_text(_QUESTION, answer))["input_ids"])))
            file.write(json.dumps({"messages": [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": answer}]}) + "\n")
    return directory


def short_lengths(count: int, *, seed: int = 0) -> list[int]:
    source = random.Random(seed)  # noqa: S311  words, not secrets
    return [source.randint(*SHORT) for _ in range(count)]


def conversation_text(question: str, answer: str) -> str:
    """A row as the template writes it."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def _words(tokenizer: Any) -> list[str]:
    """Words with a blank before them that are one token each, wherever they stand."""
    words = [tokenizer.convert_tokens_to_string([token]) for token in sorted(tokenizer.get_vocab())]
    plain = [word for word in words if word.startswith(" ") and word[1:].isascii() and word[1:].isalpha()]
    return [word for word in plain if len(tokenizer(word)["input_ids"]) == 1]
