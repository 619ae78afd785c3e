"""Rows of a JSON list and of JSON Lines."""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune_runtime.contract.result import StepError

from .base import CHUNK, MAX_ROW, RawRow, invalid

_BEHIND = (",", "]", " ", "\t", "\r", "\n")  # what may stand directly behind an element


def read_lines(uri: str, stream: BinaryIO) -> Iterator[RawRow]:
    """Rows of JSON Lines. A broken line is a row with a cause."""
    number = 0
    first = True
    while line := stream.readline(MAX_ROW):
        number += 1
        if len(line) == MAX_ROW and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW)
            yield RawRow(number, cause=f"the line is longer than {MAX_ROW // 2**20} MiB")
        elif line.strip():
            if first and line.strip() == b"{":
                raise invalid(f"{uri} is one JSON object spread over many lines. Give a JSON list, or JSON Lines: one whole object a line.")
            yield _parse(number, line)
        else:
            continue
        first = False


def read_list(uri: str, stream: BinaryIO) -> Iterator[RawRow]:
    """Elements of a JSON list in UTF-8. A broken list has no rows that could be counted, so it raises StepError."""
    return _ListReader(uri, stream).rows()


def _parse(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, value=json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return RawRow(number, cause=f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return RawRow(number, cause=f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        return RawRow(number, cause=f"not usable JSON: {error}")


class _ListReader:
    """Decodes the elements of one JSON list from a sliding window."""

    def __init__(self, uri: str, stream: BinaryIO) -> None:
        self._uri = uri
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        self._window = ""
        self._at = 0
        self._line = 1  # of the window's first character
        self._ended = False
        self._decoder = json.JSONDecoder()

    def rows(self) -> Iterator[RawRow]:
        self._next_sign()
        self._at += 1
        number = 0
        closing = self._next_sign() == "]"
        while not closing:
            number += 1
            yield RawRow(number, value=self._element())
            sign = self._next_sign()
            if sign not in (",", "]"):
                raise self._broken("expected ',' or ']'", self._at)
            closing = sign == "]"
            if not closing:
                self._at += 1
                self._next_sign()
        self._at += 1
        if self._next_sign():
            raise self._broken("data after the end of the list", self._at)

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:  # broken, or cut off by the window's end: more text tells
                if self._judge():
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error), self._at) from error
            else:
                if self._window[end : end + 1] in _BEHIND or self._judge():  # else it may be the first half of a number
                    self._at = end
                    return value
            self._fill()

    def _judge(self) -> bool:
        """Whether more text must not be waited for."""
        return self._ended or len(self._window) - self._at > MAX_ROW

    def _next_sign(self) -> str:
        """The next character that is no white space, without consuming it; empty at the end of the file."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._fill()

    def _fill(self) -> None:
        self._line += self._window.count("\n", 0, self._at)
        self._window = self._window[self._at :]
        self._at = 0
        # Twice as much each time, so that a long element is not decoded over and over.
        more = self._text.read(max(CHUNK, len(self._window)))
        self._ended = not more
        self._window += more

    def _broken(self, cause: str, position: int) -> StepError:
        line = self._line + self._window.count("\n", 0, position)
        return invalid(
            f"{self._uri} is not valid JSON at line {line}: {cause}. Correct it, or give JSON Lines (one object a line), where a broken row is reported "
            "by number and can be dropped."
        )
