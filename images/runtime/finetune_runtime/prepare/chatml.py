"""Raw ChatML text, `<|im_start|>role`, line end, content, `<|im_end|>`: whole conversations as some tools store them."""

import re
from collections.abc import Iterable, Iterator

from .faults import Fault, RowError

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_MARKER = re.compile(r"(<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>)")
_TURN = re.compile(r"\s*<\|im_start\|>([^\n<]*)\n(.*?)<\|im_end\|>", re.DOTALL)


def parse(text: str) -> list[dict[str, str]]:
    """The turns of one conversation, contents as they are written. Raises RowError for text that is not wholly made of turns."""
    text = text.rstrip().removesuffix(END_OF_TEXT).rstrip()
    turns: list[dict[str, str]] = []
    at = 0
    while at < len(text):
        found = _TURN.match(text, at)
        if not found or START in found[2]:
            line = text.count("\n", 0, at + len(text[at:]) - len(text[at:].lstrip())) + 1
            raise RowError(Fault.CHATML, f"raw ChatML: turn {len(turns) + 1} (line {line} of the row) is not {START}role, a line end, the content, {END}")
        turns.append({"role": found[1].strip(), "content": found[2]})
        at = found.end()
    return turns


def split(lines: Iterable[str], limit: int) -> Iterator[tuple[int, str | None]]:
    """The conversations in a text and the line that each begins in, from 1; None for one of more than `limit` characters.

    A new conversation begins at a system turn, behind `<|endoftext|>`, and at a turn that a blank line separates from an assistant's turn before it.
    """
    current = _Conversation(limit)
    speaker, is_open, line_ends = "", False, 0
    for number, line in _numbered(lines):
        parts = _MARKER.split(line)
        for place, part in enumerate(parts):
            if part == START and not is_open:
                role = parts[place + 1].strip()
                if current.began and (role == "system" or (speaker == "assistant" and line_ends > 1)):
                    yield current.began, current.text
                    current = _Conversation(limit)
                speaker, is_open = role, True
            elif part == END:
                is_open, line_ends = False, 0
            elif not is_open:
                line_ends += part.count("\n")
            current.add(part, number)
            if part == END_OF_TEXT and not is_open:
                yield current.began, current.text
                current, speaker = _Conversation(limit), ""
    if current.began:
        yield current.began, current.text


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, where a very long line may come in several pieces."""
    number = 1
    for line in lines:
        yield number, line
        number += line.endswith("\n")


class _Conversation:
    """Text that is collected up to a limit. `began`: line of its first sign, 0 before it."""

    def __init__(self, limit: int) -> None:
        self.began = 0
        self._pieces: list[str] = []
        self._room = limit

    def add(self, piece: str, line: int) -> None:
        if not self.began and not piece.strip():
            return
        self.began = self.began or line
        self._room -= len(piece)
        if self._room >= 0:
            self._pieces.append(piece)

    @property
    def text(self) -> str | None:
        return "".join(self._pieces) if self._room >= 0 else None
