"""Files are recognised by what they hold, and read row by row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.prepare import formats
from finetune_runtime.prepare.formats import RawRow, read_rows
from finetune_runtime.sources.dataset import SourceFile

CLINIC = Path(__file__).parents[3] / "examples/clinic"


def rows_of(tmp_path: Path, content: bytes) -> list[RawRow]:
    path = tmp_path / "data.csv"  # a misleading suffix: only the content counts
    path.write_bytes(content)
    return list(read_rows(SourceFile("s3://data/rows", path)))


READ: dict[str, tuple[bytes, list[RawRow]]] = {
    "JSON Lines": (b'{"a": 1}\n{"a": 2}\n', [RawRow(1, {"a": 1}), RawRow(2, {"a": 2})]),
    "JSON Lines without a final line end": (b'{"a": 1}\n{"a": 2}', [RawRow(1, {"a": 1}), RawRow(2, {"a": 2})]),
    "JSON Lines of Windows": (b'{"a": 1}\r\n{"a": 2}\r\n', [RawRow(1, {"a": 1}), RawRow(2, {"a": 2})]),
    "blank lines, which count as lines": (b'\n{"a": 1}\n  \n\n{"a": 2}\n', [RawRow(2, {"a": 1}), RawRow(5, {"a": 2})]),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}\n', [RawRow(1, {"a": 1})]),
    "a line separator inside a text": ('{"a": "x\u2028y"}\n{"a": 2}\n'.encode(), [RawRow(1, {"a": "x\u2028y"}), RawRow(2, {"a": 2})]),
    "a line that is no object": (b'{"a": 1}\n7\n', [RawRow(1, {"a": 1}), RawRow(2, 7)]),
    "a broken line": (
        b'{"a": 1}\n{"a" 2}\n{"a": 3}\n',
        [RawRow(1, {"a": 1}), RawRow(2, cause="not valid JSON: Expecting ':' delimiter at column 6"), RawRow(3, {"a": 3})],
    ),
    "two objects in a line": (b'{"a": 1} {"a": 2}\n', [RawRow(1, cause="not valid JSON: Extra data at column 10")]),
    "a line in another encoding": (b'{"a": 1}\n{"a": "caf\xe9"}\n', [RawRow(1, {"a": 1}), RawRow(2, cause="not UTF-8: invalid continuation byte at byte 11")]),
    "a line of brackets": (
        b'{"a": 1}\n' + b"[" * 100_000 + b"\n",
        [RawRow(1, {"a": 1}), RawRow(2, cause="not usable JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string")],
    ),
    "a JSON list": (b' [\n {"a": 1},\n {"a": [2, "]"]}\n] \n', [RawRow(1, {"a": 1}), RawRow(2, {"a": [2, "]"]})]),
    "a JSON list with a byte order mark": (b'\xef\xbb\xbf[{"a": 1}]', [RawRow(1, {"a": 1})]),
    "a JSON list of other things": (b'[1, "x", null, [2]]', [RawRow(1, 1), RawRow(2, "x"), RawRow(3, None), RawRow(4, [2])]),
}


@pytest.mark.parametrize("content", READ)
def test_rows_are_read_in_order_with_their_numbers(tmp_path: Path, content: str) -> None:
    data, expected = READ[content]
    assert rows_of(tmp_path, data) == expected


REFUSED: dict[str, tuple[bytes, Reason, str]] = {
    "an empty file": (b"", Reason.DATASET_EMPTY, "s3://data/rows has 0 bytes. Fill it, or remove it from the sources."),
    "white space only": (b" \n\n", Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "an empty list": (b"[]\n", Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "CSV": (b"question,answer\na,b\n", Reason.DATA_INVALID, "neither a JSON list nor JSON Lines (it begins with 'question,answer'; CSV"),
    "Parquet": (b"PAR1\x15\x04", Reason.DATA_INVALID, "is a Parquet file. Give a JSON list or JSON Lines"),
    "a compressed file": (gzip.compress(b"{}"), Reason.DATA_INVALID, "is a gzip archive."),
    "Excel": (b"PK\x03\x04\x14", Reason.DATA_INVALID, "is a zip archive or an Excel file."),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), Reason.DATA_INVALID, "is UTF-16 text."),
    "raw ChatML": (b"<|im_start|>user\nhi<|im_end|>", Reason.DATA_INVALID, "is raw text with chat markers"),
    "an object over many lines": (b'{\n  "data": []\n}\n', Reason.DATA_INVALID, "is one JSON object spread over many lines."),
    "a list that is cut off": (b'[{"a": 1},\n{"a": 2', Reason.DATA_INVALID, "is not valid JSON at line 2: Expecting ',' delimiter."),
    "a list without its end": (b'[{"a": 1}', Reason.DATA_INVALID, "is not valid JSON at line 1: expected ',' or ']'."),
    "a list with a trailing comma": (b'[{"a": 1},\n]', Reason.DATA_INVALID, "is not valid JSON at line 2: Expecting value."),
    "a broken element": (b'[{"a": 1},\n\n{"a" 2},\n{"a": 3}]', Reason.DATA_INVALID, "is not valid JSON at line 3: Expecting ':' delimiter."),
    "two lists": (b"[1]\n[2]", Reason.DATA_INVALID, "is not valid JSON at line 2: data after the end of the list."),
    "a list in another encoding": (b'["caf\xe9"]', Reason.DATA_INVALID, "is not UTF-8 (invalid continuation byte). Save it as UTF-8."),
}


@pytest.mark.parametrize("content", REFUSED)
def test_refused_file_names_cause_and_cure(tmp_path: Path, content: str) -> None:
    data, reason, message = REFUSED[content]
    with pytest.raises(StepError) as caught:
        rows_of(tmp_path, data)
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, reason)
    assert message in caught.value.message
    assert caught.value.message.startswith("s3://data/rows ")


@pytest.mark.parametrize(
    ("file", "rows", "broken"),
    [("support.jsonl", 149, []), ("bad/broken-json.jsonl", 10, [4]), ("bad/empty-response.jsonl", 11, []), ("bad/unknown-columns.jsonl", 5, [])],
)
def test_example_files_have_the_rows_that_their_readme_tells(file: str, rows: int, broken: list[int]) -> None:
    found = list(read_rows(SourceFile(file, CLINIC / file)))
    assert len(found) == rows
    assert [row.number for row in found if row.cause] == broken


def test_overlong_line_is_one_invalid_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_ROW", 2**20)
    long = b'{"a": "' + b"x" * (3 * 2**20) + b'"}\n'
    assert rows_of(tmp_path, b'{"a": 1}\n' + long + b'{"a": 2}\n') == [
        RawRow(1, {"a": 1}),
        RawRow(2, cause="the line is longer than 1 MiB"),
        RawRow(3, {"a": 2}),
    ]


def test_unterminated_element_does_not_pull_the_whole_file_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_ROW", 2**16)
    monkeypatch.setattr(formats, "_CHUNK", 2**12)
    path = tmp_path / "data"
    path.write_bytes(b'[{"a": "' + b"x" * 2**24 + b'"}]')
    reader = formats._ListReader("s3://data/rows", path.open("rb"))
    with pytest.raises(StepError, match="Unterminated string"):
        list(reader.rows())
    assert len(reader._window) < 2**18


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@given(rows=st.lists(JSON, min_size=1, max_size=6), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans())
def test_list_is_read_alike_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, rows: list[Any], indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "data"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_CHUNK", chunk)
        assert [row.value for row in read_rows(SourceFile("s3://data/rows", path))] == rows


@given(rows=st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), JSON, max_size=3), min_size=1, max_size=6))
def test_lines_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("lines") / "data"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    assert [row.value for row in read_rows(SourceFile("s3://data/rows", path))] == rows
