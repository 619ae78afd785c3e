"""A bounded, reproducible sample of rows in which every kind of conversation is present."""

import random
import re
from dataclasses import dataclass, field

from .rows import Message

PER_KIND = 16
_EMPTY_REASONING = re.compile(r"<think>\s*</think>")


@dataclass(frozen=True)
class Example:
    """A row as it is trained, and the messages that its user will send for the last answer. `where`: source:row, empty for one of ours."""

    messages: list[Message]
    request: list[Message]
    where: str = ""

    @property
    def answer(self) -> str:
        """What the model shall answer to the request."""
        return self.messages[-1]["content"]

    @property
    def reasons(self) -> bool:
        """Whether the answer opens with its reasoning; an empty block of it is the sign of an answer without."""
        return self.answer.startswith("<think>") and not _EMPTY_REASONING.match(self.answer)

    @property
    def has_history(self) -> bool:
        """Whether the request holds earlier answers."""
        return any(message["role"] == "assistant" for message in self.request)


@dataclass
class Sample:
    """Keeps up to PER_KIND rows of each kind, each row of a kind with equal chance (reservoir sampling)."""

    seed: int
    _kept: dict[tuple[bool, ...], list[Example]] = field(default_factory=dict)
    _seen: dict[tuple[bool, ...], int] = field(default_factory=dict)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  reproducible on purpose, guards nothing

    def add(self, example: Example) -> None:
        """Offers a row to the sample."""
        kind = (
            example.messages[0]["role"] == "system",
            len(example.messages) != len(example.request) + 1,  # the system prompt of the job was filled in
            example.has_history,
            example.reasons,
            example.answer.startswith("<"),  # markers that templates look at
            any(message["content"] != message["content"].strip() for message in example.messages),
        )
        kept, seen = self._kept.setdefault(kind, []), self._seen.get(kind, 0)
        self._seen[kind] = seen + 1
        if len(kept) < PER_KIND:
            kept.append(example)
        elif (place := self._random.randrange(seen + 1)) < PER_KIND:
            kept[place] = example

    @property
    def examples(self) -> list[Example]:
        """The rows of the sample, by kind."""
        return [example for kind in sorted(self._kept) for example in self._kept[kind]]


def as_request(messages: list[Message], *, system_filled_in: bool) -> list[Message]:
    """What a user sends to get a row's last answer: without that answer, and without the system prompt that the job filled in."""
    return messages[1 if system_filled_in else 0 : -1]
