"""Rows of a JSON list or of JSON Lines, told apart by content, one at a time: memory does not grow with the file."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.sources.dataset import SourceFile

MAX_ROW = 16 * 2**20  # bytes of a line, characters of a list element; far above the longest row that any model takes
_CHUNK = 2**20
_BEHIND = (",", "]", " ", "\t", "\r", "\n")  # what may stand directly behind an element
_UTF8_BOM = b"\xef\xbb\xbf"
_ACCEPTED = "Give a JSON list or JSON Lines (one JSON object a line), UTF-8, not compressed."
_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"<|": "raw text with chat markers (the model's own markers are added by the job)",
}


@dataclass(frozen=True)
class RawRow:
    """One row. `number` is its line (JSON Lines) or its place in the list, from 1; `cause` says why there is no value."""

    number: int
    value: Any = None
    cause: str = ""


def read_rows(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a file in their order. A broken line is a row with a cause; a file that has no rows at all raises StepError."""
    with file.path.open("rb") as stream:
        if stream.peek(3)[:3] == _UTF8_BOM:
            stream.read(3)
        start = stream.tell()
        while (first := stream.read(1)).isspace():
            pass
        stream.seek(start)
        if first == b"[":
            rows = _ListReader(file.uri, stream).rows()
        elif first == b"{":
            rows = _lines(file.uri, stream)
        elif first:
            raise _invalid(f"{file.uri} is {_kind_of(stream.read(64))}. {_ACCEPTED}")
        else:
            rows = iter(())
        empty = True
        for row in rows:
            empty = False
            yield row
        if empty:
            size = "0 bytes" if file.path.stat().st_size == 0 else "no rows"
            raise StepError(Exit.DATA_INVALID, Reason.DATASET_EMPTY, f"{file.uri} has {size}. Fill it, or remove it from the sources.")


def _kind_of(head: bytes) -> str:
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    text = head.decode(errors="replace").splitlines()[0][:40]
    return f"neither a JSON list nor JSON Lines (it begins with {text!r}; CSV and plain text are not supported)"


def _invalid(message: str) -> StepError:
    return StepError(Exit.DATA_INVALID, Reason.DATA_INVALID, message)


def _lines(uri: str, stream: BinaryIO) -> Iterator[RawRow]:
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
                raise _invalid(f"{uri} is one JSON object spread over many lines. {_ACCEPTED}")
            yield _parse(number, line)
        else:
            continue
        first = False


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
    """Decodes the elements of one JSON list from a sliding window. A broken list has no rows that could be counted, so it raises."""

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
        try:
            # Twice as much each time, so that a long element is not decoded over and over.
            more = self._text.read(max(_CHUNK, len(self._window)))
        except UnicodeDecodeError as error:
            raise _invalid(f"{self._uri} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error
        self._ended = not more
        self._window += more

    def _broken(self, cause: str, position: int) -> StepError:
        line = self._line + self._window.count("\n", 0, position)
        return _invalid(
            f"{self._uri} is not valid JSON at line {line}: {cause}. Correct it, or give JSON Lines (one object a line), where a broken row is reported "
            "by number and can be dropped."
        )
