"""Files told apart by what they hold, and their rows one at a time: memory does not grow with the file.

JSON list, JSON Lines, CSV, TSV, Parquet, and text files of raw ChatML, each plain or in gzip; text in UTF-8, UTF-16 or GB18030.
"""

import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.sources.dataset import SourceFile

from .chatml import START
from .readers.base import RawRow, invalid
from .readers.chatml_text import read_chatml
from .readers.json_text import read_lines, read_list
from .readers.tables import read_delimited, read_parquet
from .readers.text import Encoding, Packed, recognise
from .rows import COLUMNS

__all__ = ["Format", "Layout", "RawRow", "read_rows", "recognise_file"]

_HEAD = 2**16
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_ACCEPTED = "Give a JSON list, JSON Lines (one JSON object a line), CSV or TSV with a header, Parquet, or raw ChatML text; gzip is unpacked."
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite data base",
    _GZIP: "a gzip archive inside of a gzip archive",
}


class Format(StrEnum):
    """What holds the rows, by the names that reports show."""

    JSON = "JSON list"
    JSON_LINES = "JSON Lines"
    CSV = "CSV"
    TSV = "TSV"
    PARQUET = "Parquet"
    CHATML = "ChatML text"


@dataclass(frozen=True)
class Layout:
    """How a file is written. `encoding` is None for Parquet; `format` is None for a file without any sign."""

    format: Format | None
    encoding: Encoding | None
    gzip: bool = False

    def __str__(self) -> str:
        return f"{self.format or 'empty'}{' in gzip' if self.gzip else ''}"


def recognise_file(file: SourceFile) -> Layout:
    """How the file is written; a text file is read through once to prove its encoding. Raises StepError for what cannot be read."""
    with file.path.open("rb") as stream:
        packed = Packed(file.uri, file.path, stream.read(len(_GZIP)) == _GZIP)
    head = next(packed.chunks(), b"")[:_HEAD]
    if head.startswith(_PARQUET):
        return Layout(Format.PARQUET, None, packed.gzip)
    if kind := next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None):
        raise invalid(f"{file.uri} is {kind}. {_ACCEPTED}")
    encoding = recognise(packed, head, by_line=head.lstrip()[:1] == b"{")
    with packed.open_text(encoding) as text:
        start = text.read(_HEAD).decode(errors="replace").lstrip()
    return Layout(_format(file.uri, start), encoding, packed.gzip)


def read_rows(file: SourceFile, layout: Layout | None = None, scratch: Path | None = None) -> Iterator[RawRow]:
    """The rows of a file in their order. A broken row has a cause; a file that cannot be read, or has no rows at all, raises StepError.

    `layout`: what recognise_file said of it. `scratch`: a directory with room for an unpacked file; absent: the system's directory for such files.
    """
    layout = layout or recognise_file(file)
    empty = True
    for row in _rows(file, layout, scratch):
        empty = False
        yield row
    if empty:
        size = "0 bytes" if file.path.stat().st_size == 0 else "no rows"
        raise StepError(Exit.DATA_INVALID, Reason.DATASET_EMPTY, f"{file.uri} has {size}. Fill it, or remove it from the sources.")


def _format(uri: str, start: str) -> Format | None:
    """The format of a text by its first signs, white space aside."""
    if start.startswith("["):
        return Format.JSON
    if start.startswith("{"):
        return Format.JSON_LINES
    if start.startswith(START):
        return Format.CHATML
    if not start:
        return None
    header = start.splitlines()[0]
    for delimiter, kind in ((",", Format.CSV), ("\t", Format.TSV)):
        names = next(csv.reader([header[:10_000]], delimiter=delimiter), [])
        if COLUMNS.intersection(name.strip().lower() for name in names):
            return kind
    if start.startswith("<|"):
        raise invalid(f"{uri} is raw text with chat markers other than ChatML's (it begins with {header[:40]!r}). {_ACCEPTED}")
    raise invalid(
        f"{uri} is not in a format that is known: its first line {header[:40]!r} is no JSON, and as a header of CSV or TSV it has no column that rows are "
        f"made of, such as query and response. {_ACCEPTED}"
    )


def _rows(file: SourceFile, layout: Layout, scratch: Path | None) -> Iterator[RawRow]:
    packed = Packed(file.uri, file.path, layout.gzip)
    if layout.format is None:
        return
    if layout.format is Format.PARQUET or layout.encoding is None:
        with _seekable(packed, scratch) as parquet:
            yield from read_parquet(file.uri, parquet)
        return
    encoding = layout.encoding
    if layout.format in (Format.CSV, Format.TSV):
        yield from read_delimited(file.uri, lambda: packed.open_text(encoding), "\t" if layout.format is Format.TSV else ",")
        return
    with packed.open_text(encoding) as text:
        if layout.format is Format.JSON:
            yield from read_list(file.uri, text)
        elif layout.format is Format.JSON_LINES:
            yield from read_lines(file.uri, text)
        else:
            yield from read_chatml(text)


@contextmanager
def _seekable(packed: Packed, scratch: Path | None) -> Iterator[BinaryIO]:
    """The unpacked bytes as a file: Parquet is read from its end."""
    if not packed.gzip:
        with packed.open() as stream:
            yield stream
        return
    with tempfile.TemporaryFile(dir=scratch) as unpacked:
        for chunk in packed.chunks():
            unpacked.write(chunk)
        unpacked.seek(0)
        yield unpacked
