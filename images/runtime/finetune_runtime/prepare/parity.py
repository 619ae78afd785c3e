"""Parity samples: requests of which the token ids that training has before the answer are known. Serving shows them to the live engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from .sample import Example

COUNT = 8
MAX_TOKENS = 1024  # of one sample: all of them together stay below 100 KB in ordinary languages


@dataclass(frozen=True)
class Proven:
    """An example of which the chat template makes exactly the `tokens` that training has. `options`: of the template, as its user sets them."""

    example: Example
    options: Mapping[str, bool]
    tokens: list[int]


def choose(proven: Iterable[Proven]) -> list[dict[str, Any]]:
    """A few samples for the artefact, of as many kinds of conversation as there are; within a kind, rows of the data come before ours."""
    kinds: dict[tuple[bool, ...], list[Proven]] = {}
    for found in proven:
        request = found.example.request
        kind = (request[0]["role"] == "system", found.example.has_history, bool(found.options))
        if len(found.tokens) <= MAX_TOKENS:
            kinds.setdefault(kind, []).append(found)
    ordered = [sorted(found, key=lambda one: not one.example.where) for _, found in sorted(kinds.items())]
    chosen = [found for found in chain.from_iterable(zip_longest(*ordered)) if found][:COUNT]
    return [{"messages": [dict(message) for message in found.example.request], "options": dict(found.options), "tokens": found.tokens} for found in chosen]
