"""Files are recognised by what they hold, and read row by row."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.prepare.formats import RawRow, read_rows, recognise_file
from finetune_runtime.prepare.readers import chatml_text, json_text, tables, text
from finetune_runtime.prepare.readers.text import Encoding
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


HUMAN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
SYSTEM = "<|im_start|>system\nS<|im_end|>\n"
CHINESE = '{"query": "你好、请问几点开门。", "response": "九点。"}'


def packed_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


NESTED: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "n": 7}, {"messages": None, "n": None}]
# Content, what is recognised, and the rows.
RECOGNISED: dict[str, tuple[bytes, str, Encoding | None, list[RawRow]]] = {
    "CSV keeps numbers as they are written": (b"query,response\n007,1.50\n", "CSV", Encoding.UTF8, [RawRow(1, {"query": "007", "response": "1.50"})]),
    "CSV of Excel: BOM, CRLF, quotes, line ends inside": (
        b'\xef\xbb\xbfquery,response\r\n"a, ""b""","c\r\nd"\r\n\r\n,NA\r\n',
        "CSV",
        Encoding.UTF8_BOM,
        [RawRow(1, {"query": 'a, "b"', "response": "c\r\nd"}), RawRow(2, {"query": "", "response": "NA"})],
    ),
    "CSV with column names in capitals and spaces": (b"Query, Response\na,b\n", "CSV", Encoding.UTF8, [RawRow(1, {"Query": "a", " Response": "b"})]),
    "CSV rows with too few and too many values": (
        b"query,response\na,b\nc\nd,e,f\ng,h\ni\n",
        "CSV",
        Encoding.UTF8,
        [
            RawRow(1, {"query": "a", "response": "b"}),
            RawRow(2, cause="1 values for 2 columns: a value with the delimiter needs quotes"),
            RawRow(3, cause="3 values for 2 columns: a value with the delimiter needs quotes"),
            RawRow(4, {"query": "g", "response": "h"}),
            RawRow(5, cause="1 values for 2 columns: a value with the delimiter needs quotes"),
        ],
    ),
    "CSV of one column": (b'text\n"<|im_start|>user\nHi"\n', "CSV", Encoding.UTF8, [RawRow(1, {"text": "<|im_start|>user\nHi"})]),
    "TSV, where commas are text": (b"query\tresponse\na, b\tc\n", "TSV", Encoding.UTF8, [RawRow(1, {"query": "a, b", "response": "c"})]),
    "Parquet": (packed_parquet(NESTED), "Parquet", None, [RawRow(1, NESTED[0]), RawRow(2, NESTED[1])]),
    "Parquet in gzip": (gzip.compress(packed_parquet(NESTED)), "Parquet in gzip", None, [RawRow(1, NESTED[0]), RawRow(2, NESTED[1])]),
    "JSON Lines in gzip": (gzip.compress(b'{"a": 1}\n'), "JSON Lines in gzip", Encoding.UTF8, [RawRow(1, {"a": 1})]),
    "JSON Lines in two gzip members": (
        gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'),
        "JSON Lines in gzip",
        Encoding.UTF8,
        [RawRow(1, {"a": 1}), RawRow(2, {"a": 2})],
    ),
    "a JSON list in gzip": (gzip.compress(b'[{"a": 1}]'), "JSON list in gzip", Encoding.UTF8, [RawRow(1, {"a": 1})]),
    "CSV in gzip": (gzip.compress(b"query,response\na,b\n"), "CSV in gzip", Encoding.UTF8, [RawRow(1, {"query": "a", "response": "b"})]),
    "UTF-16 of Windows": (CHINESE.encode("utf-16"), "JSON Lines", Encoding.UTF16, [RawRow(1, json.loads(CHINESE))]),
    "UTF-16 with the high byte first": (b"\xfe\xff" + CHINESE.encode("utf-16-be"), "JSON Lines", Encoding.UTF16, [RawRow(1, json.loads(CHINESE))]),
    "CSV in UTF-16": ("query,response\né,b\n".encode("utf-16"), "CSV", Encoding.UTF16, [RawRow(1, {"query": "é", "response": "b"})]),
    "GB18030": (CHINESE.encode("gb18030"), "JSON Lines", Encoding.GB18030, [RawRow(1, json.loads(CHINESE))]),
    "a JSON list in GB18030": (f"[{CHINESE}]".encode("gb18030"), "JSON list", Encoding.GB18030, [RawRow(1, json.loads(CHINESE))]),
    "GB18030 in gzip with a sign of four bytes": (
        gzip.compress("query,response\n请问几点开门,九点开门。😀\n".encode("gb18030")),
        "CSV in gzip",
        Encoding.GB18030,
        [RawRow(1, {"query": "请问几点开门", "response": "九点开门。😀"})],
    ),
    "ChatML: a new conversation at each system turn": (
        (SYSTEM + HUMAN + SYSTEM + HUMAN).encode(),
        "ChatML text",
        Encoding.UTF8,
        [RawRow(1, {"text": SYSTEM + HUMAN}), RawRow(7, {"text": SYSTEM + HUMAN})],
    ),
    "ChatML: a new conversation behind a blank line, not without": (
        (HUMAN + HUMAN + "\n" + HUMAN).encode(),
        "ChatML text",
        Encoding.UTF8,
        [RawRow(1, {"text": HUMAN + HUMAN + "\n"}), RawRow(10, {"text": HUMAN})],
    ),
    "ChatML: a new conversation behind the end of a text": (
        (HUMAN.strip() + "<|endoftext|>" + HUMAN + "<|endoftext|>\n").encode(),
        "ChatML text",
        Encoding.UTF8,
        [RawRow(1, {"text": HUMAN.strip() + "<|endoftext|>"}), RawRow(4, {"text": HUMAN + "<|endoftext|>"})],
    ),
    "ChatML: a blank line inside of a turn, and before an answer": (
        b"\n<|im_start|>user\na\n\n<|im_end|>\n\n<|im_start|>assistant\nb<|im_end|>",
        "ChatML text",
        Encoding.UTF8,
        [RawRow(2, {"text": "<|im_start|>user\na\n\n<|im_end|>\n\n<|im_start|>assistant\nb<|im_end|>"})],
    ),
}


@pytest.mark.parametrize("content", RECOGNISED)
def test_format_and_encoding_are_recognised_and_named(tmp_path: Path, content: str) -> None:
    data, layout, encoding, rows = RECOGNISED[content]
    (tmp_path / "rows").write_bytes(data)
    found = recognise_file(SourceFile("s3://data/rows", tmp_path / "rows"))
    assert (str(found), found.encoding) == (layout, encoding)
    assert rows_of(tmp_path, data) == rows


REFUSED: dict[str, tuple[bytes, Reason, str]] = {
    "an empty file": (b"", Reason.DATASET_EMPTY, "s3://data/rows has 0 bytes. Fill it, or remove it from the sources."),
    "white space only": (b" \n\n", Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "an empty list": (b"[]\n", Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "a header without rows": (b"query,response\n", Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "Parquet without rows": (packed_parquet(NESTED[:0]), Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "an empty archive": (gzip.compress(b""), Reason.DATASET_EMPTY, "s3://data/rows has no rows."),
    "plain text": (
        b"Dear all,\nthis is no data.\n",
        Reason.DATA_INVALID,
        "is not in a format that is known: its first line 'Dear all,' is no JSON, and as a header of CSV or TSV it has no column that rows are made of, such",
    ),
    "CSV with semicolons": (b"query;response\na;b\n", Reason.DATA_INVALID, "its first line 'query;response' is no JSON"),
    "CSV with a column twice": (b"query,query,response\na,b,c\n", Reason.DATA_INVALID, "has the column 'query' twice. Rename or remove one."),
    "CSV with a quote that is never closed": (b'query,response\n"a,b\nc,d\n', Reason.DATA_INVALID, "has an odd number of quotation marks: a quoted value has"),
    "Parquet that is cut off": (packed_parquet(NESTED)[:-30], Reason.DATA_INVALID, "cannot be read as Parquet below row 0: "),
    "Parquet in name only": (b"PAR1\x15\x04", Reason.DATA_INVALID, "cannot be read as Parquet below row 0: "),
    "gzip in gzip": (gzip.compress(gzip.compress(b"{}")), Reason.DATA_INVALID, "is a gzip archive inside of a gzip archive. Give a JSON list"),
    "a gzip archive that is cut off": (
        gzip.compress(b'{"a": 1}\n' * 9)[:-9],
        Reason.DATA_INVALID,
        "is a damaged gzip archive: Compressed file ended before the",
    ),
    "Excel": (b"PK\x03\x04\x14", Reason.DATA_INVALID, "is a zip archive or an Excel file. Give a JSON list"),
    "zstd": (b"\x28\xb5\x2f\xfd\x14", Reason.DATA_INVALID, "is a zstd archive. Give a JSON list"),
    "Arrow": (b"ARROW1\x00\x00", Reason.DATA_INVALID, "is an Arrow file. Give a JSON list"),
    "UTF-16 without a byte order mark": (
        '{"a": 1}'.encode("utf-16-le"),
        Reason.DATA_INVALID,
        "has a zero byte at byte 2: it is binary, or UTF-16 text without a byte order mark. Save it as UTF-8.",
    ),
    "UTF-16 that is cut off": ('{"a": 1}'.encode("utf-16")[:-1], Reason.DATA_INVALID, "is not valid UTF-16 at byte 17 (truncated data). Save it as UTF-8."),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), Reason.DATA_INVALID, "is UTF-32 text. Save it as UTF-8."),
    "raw text with other markers": (
        b"<|start_header_id|>user",
        Reason.DATA_INVALID,
        "is raw text with chat markers other than ChatML's (it begins with '<|start_",
    ),
    "an object over many lines": (b'{\n  "data": []\n}\n', Reason.DATA_INVALID, "is one JSON object spread over many lines."),
    "a list that is cut off": (b'[{"a": 1},\n{"a": 2', Reason.DATA_INVALID, "is not valid JSON at line 2: Expecting ',' delimiter."),
    "a list without its end": (b'[{"a": 1}', Reason.DATA_INVALID, "is not valid JSON at line 1: expected ',' or ']'."),
    "a list with a trailing comma": (b'[{"a": 1},\n]', Reason.DATA_INVALID, "is not valid JSON at line 2: Expecting value."),
    "a broken element": (b'[{"a": 1},\n\n{"a" 2},\n{"a": 3}]', Reason.DATA_INVALID, "is not valid JSON at line 3: Expecting ':' delimiter."),
    "two lists": (b"[1]\n[2]", Reason.DATA_INVALID, "is not valid JSON at line 2: data after the end of the list."),
    "a list in Latin-1": (
        b'["caf\xe9"]',
        Reason.DATA_INVALID,
        "is not UTF-8 at byte 6 (invalid continuation byte), and neither UTF-16 nor Chinese text in GB18030. Save it as UTF-8.",
    ),
    "Latin-1 whose bytes are valid GB18030, too": ("query,response\nThéâtres?,é?\n".encode("latin-1"), Reason.DATA_INVALID, "is not UTF-8 at byte 18 ("),
    "Traditional Chinese in Big5": ("query,response\n請問幾點開門,九點開門\n".encode("big5"), Reason.DATA_INVALID, "is not UTF-8 at byte 16 ("),
    "Japanese in Shift JIS": ("query,response\nこんにちは,いらっしゃいませ\n".encode("shift-jis"), Reason.DATA_INVALID, "is not UTF-8 at byte 16 ("),
    "Japanese in EUC": ("query,response\nこんにちは,いらっしゃいませ\n".encode("euc-jp"), Reason.DATA_INVALID, "is not UTF-8 at byte 16 ("),
    "an error far behind the beginning": (b'["' + b"x" * 3_000_000 + b'\xff"]', Reason.DATA_INVALID, "is not UTF-8 at byte 3,000,003 (invalid start byte)"),
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
    monkeypatch.setattr(json_text, "MAX_ROW", 2**20)
    long = b'{"a": "' + b"x" * (3 * 2**20) + b'"}\n'
    assert rows_of(tmp_path, b'{"a": 1}\n' + long + b'{"a": 2}\n') == [
        RawRow(1, {"a": 1}),
        RawRow(2, cause="the line is longer than 1 MiB"),
        RawRow(3, {"a": 2}),
    ]


def test_unterminated_element_does_not_pull_the_whole_file_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_ROW", 2**16)
    monkeypatch.setattr(json_text, "CHUNK", 2**12)
    path = tmp_path / "data"
    path.write_bytes(b'[{"a": "' + b"x" * 2**24 + b'"}]')
    reader = json_text._ListReader("s3://data/rows", path.open("rb"))
    with pytest.raises(StepError, match="Unterminated string"):
        list(reader.rows())
    assert len(reader._window) < 2**18


def test_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_UNPACKED", 2**22)
    with pytest.raises(StepError, match=r"^s3://data/rows unpacks to more than 4,194,304 bytes\. Split it, or give it unpacked\.$"):
        rows_of(tmp_path, gzip.compress(b'{"a": 1}\n' * 2**20))


def test_parquet_in_one_huge_row_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"query": f"{number}" * 100, "response": "b"} for number in range(100)]
    monkeypatch.setattr(tables, "MAX_ROW_GROUP", 5000)
    with pytest.raises(StepError, match=r"^s3://data/rows has a row group of [\d,]+ bytes, at most 5,000 are read: write it anew in smaller row groups\."):
        rows_of(tmp_path, packed_parquet(rows))
    assert len(rows_of(tmp_path, packed_parquet(rows, row_group_size=10, use_dictionary=False))) == 100


def test_bad_rows_of_a_table_of_many_blocks_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 2**10)
    lines = ["lone" if number % 7 == 0 else f'"q\n{number}",r' for number in range(1, 2001)]
    found = rows_of(tmp_path, "\n".join(["query,response", *lines]).encode())
    assert [row.number for row in found] == list(range(1, 2001))
    assert all(bool(row.cause) == (row.number % 7 == 0) for row in found)
    assert all(row.value["query"] == f"q\n{row.number}" for row in found if row.value)


def test_row_of_a_table_that_is_longer_than_a_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 2**10)
    with pytest.raises(
        StepError, match=r"^s3://data/rows cannot be read as CSV below row 1: a row is longer than 1,024 bytes, or a quoted value is never closed\."
    ):
        rows_of(tmp_path, b'query,response\na,b\n"' + b"c\n" * 2**10 + b'",d\n')


def test_endless_conversation_is_one_invalid_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatml_text, "MAX_ROW", 2**20)
    found = rows_of(tmp_path, (HUMAN + "<|im_start|>system\n" + "x" * 2**21 + "<|im_end|>\n\n" + SYSTEM + HUMAN).encode())
    assert found == [RawRow(1, {"text": HUMAN}), RawRow(5, cause="the conversation is longer than 1 MiB"), RawRow(8, {"text": SYSTEM + HUMAN})]


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
        patch.setattr(json_text, "CHUNK", chunk)
        assert [row.value for row in read_rows(SourceFile("s3://data/rows", path))] == rows


@given(rows=st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), JSON, max_size=3), min_size=1, max_size=6))
def test_lines_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("lines") / "data"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    assert [row.value for row in read_rows(SourceFile("s3://data/rows", path))] == rows
