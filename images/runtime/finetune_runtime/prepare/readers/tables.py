"""Rows of CSV, TSV and Parquet files, read with Arrow."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import csv, parquet

from .base import CHUNK, RawRow, invalid

MAX_ROW_GROUP = 2**30  # bytes of a Parquet row group, which is what a reader has to unpack at once
BLOCK = 2 * 2**20  # bytes of a delimited table that are parsed at once, and the most that a row can have; Arrow reads 32 blocks ahead
_BATCH = 256  # rows of a Parquet file that are Python objects at one time
_ERRORS = (pa.ArrowException, ValueError, OverflowError, OSError, MemoryError)  # MemoryError: a damaged file that claims to hold terabytes


def read_delimited(uri: str, open_text: Callable[[], BinaryIO], delimiter: str) -> Iterator[RawRow]:
    """Rows of a table with a header; every value is text, so that 007 stays 007. A row with too few or too many values has a cause."""
    kind = "TSV" if delimiter == "\t" else "CSV"
    _check_quotes(uri, open_text)
    bad: deque[RawRow] = deque()

    def skip(row: Any) -> str:
        # Arrow counts the header as row 1.
        bad.append(RawRow(row.number - 1, cause=f"{row.actual_columns} values for {row.expected_columns} columns: a value with the delimiter needs quotes"))
        return "skip"

    number = 0  # of the last row that was passed on
    with open_text() as stream:
        try:
            reader = csv.open_csv(
                stream,
                csv.ReadOptions(use_threads=False, block_size=BLOCK),
                csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
                csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False),
            )
            _check_names(uri, reader.schema.names)
            for batch in reader:
                for value in _objects(batch):
                    number += 1
                    while bad and bad[0].number == number:
                        yield bad.popleft()
                        number += 1
                    yield RawRow(number, value)
        except _ERRORS as error:
            cause = f"a row is longer than {BLOCK:,} bytes, or a quoted value is never closed" if "straddling" in str(error) else _first_line(error)
            raise invalid(f"{uri} cannot be read as {kind} below row {number}: {cause}. Correct it, or give JSON Lines.") from error
    yield from bad


def read_parquet(uri: str, path: Path | BinaryIO) -> Iterator[RawRow]:
    """Rows of a Parquet file."""
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            _check_names(uri, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                if size > MAX_ROW_GROUP:
                    raise invalid(f"{uri} has a row group of {size:,} bytes, at most {MAX_ROW_GROUP:,} are read: write it anew in smaller row groups.")
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for value in _objects(batch):
                    number += 1
                    yield RawRow(number, value)
    except _ERRORS as error:
        raise invalid(f"{uri} cannot be read as Parquet below row {number}: {_first_line(error)}. Write it anew, or give JSON Lines.") from error


def _objects(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch; they become Python objects few at a time, because those take many times the room."""
    for start in range(0, batch.num_rows, _BATCH):
        yield from batch.slice(start, _BATCH).to_pylist()


def _check_names(uri: str, names: list[str]) -> None:
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise invalid(f"{uri} has the column {twice[:60]!r} twice. Rename or remove one.")


def _check_quotes(uri: str, open_text: Callable[[], BinaryIO]) -> None:
    """A quote that is never closed would make the rest of the file one value."""
    marks = 0
    with open_text() as stream:
        while chunk := stream.read(CHUNK):
            marks += chunk.count(b'"')
    if marks % 2:
        raise invalid(f"{uri} has an odd number of quotation marks: a quoted value has no end. Close it, and write a mark inside of a quoted value twice.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
