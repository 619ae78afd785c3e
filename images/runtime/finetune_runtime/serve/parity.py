"""Prompt parity on the live engine: it sees the token ids that training had. Standard library only, as `ready`.

An engine that renders requests otherwise answers worse, up to nonsense, without any error: another chat template, a tokenizer of another
revision, an engine's own idea of a default system prompt.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "parity.json"  # contract.artefact.PARITY_FILE, which costs the import of pydantic; a test keeps them equal
_SHOWN = 4  # tokens around the first difference

Tokenize = Callable[[list[dict[str, Any]], dict[str, Any]], list[int]]
"""Token ids that the engine makes of a request's messages and of the options of its chat template."""


class PromptDiffersError(Exception):
    """Says where, and what to do about it, in one line."""


def samples(adapter: Path) -> list[dict[str, Any]]:
    """Requests and the token ids that training had for them; none in adapters of older releases."""
    path = adapter / FILE
    found: list[dict[str, Any]] = json.loads(path.read_bytes())["samples"] if path.exists() else []
    return found


def check(known: list[dict[str, Any]], tokenize: Tokenize) -> None:
    """Raises PromptDiffersError for the first sample that the engine sees otherwise."""
    for number, sample in enumerate(known, 1):
        trained, seen = sample["tokens"], tokenize(sample["messages"], sample["options"])
        if trained != seen:
            raise PromptDiffersError(
                f"the engine does not see the prompt that the training had: sample {number} of {len(known)} {difference(trained, seen)}. The chat template "
                "or the tokenizer is not that of the training: serve the base model and the revision that the adapter was trained on, or train it again."
            )


def difference(trained: list[int], seen: list[int]) -> str:
    """Where two prompts part, in words. Token ids with their place, from 1."""
    pairs = zip(trained, seen, strict=False)
    at = next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(trained), len(seen)))
    return f"differs from token {at + 1} on: training has {_around(trained, at)}, the engine {_around(seen, at)}"


def _around(ids: list[int], at: int) -> str:
    if not ids:
        return "none"
    start, end = max(0, at - _SHOWN), at + _SHOWN
    shown = " ".join(map(str, ids[start:end])) + (" (its end)" if end >= len(ids) else " ...")
    return f"{'... ' if start else ''}{shown} of {len(ids)} tokens"
