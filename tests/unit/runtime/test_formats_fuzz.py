"""Whatever bytes a file has: rows, rows with a cause, or one message that names the file."""

import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.prepare.faults import RowError
from finetune_runtime.prepare.formats import read_rows
from finetune_runtime.prepare.rows import normalise
from finetune_runtime.sources.dataset import SourceFile

CASES = 2000
TURNS = [{"role": "user", "content": "Wann, 你好?"}, {"role": "assistant", "content": 'At "nine"\n.'}]
ROWS = [{"query": f"q{number}", "response": "預約 a, b", "history": "[]"} for number in range(3)]


def _parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([{**row, "messages": TURNS, "n": number} for number, row in enumerate(ROWS)]), file)
    return file.getvalue()


def _chatml() -> bytes:
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TURNS * 2).encode()


VALID: list[bytes] = [
    json.dumps([{"messages": TURNS}, *ROWS], ensure_ascii=False, indent=1).encode(),
    "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [{"conversations": TURNS}, *ROWS]).encode(),
    b'query,response\n"a, b","c\nd"\n1,2\n',
    b"query\tresponse\na\tb\nc\td\n",
    _chatml(),
    '{"query": "你好、请问几点开门", "response": "九点"}\n'.encode("gb18030"),
    '{"query": "a", "response": "b"}\n'.encode("utf-16"),
    b"\xef\xbb\xbf" + b'[{"query": "a", "response": "b"}]',
    _parquet(),
]
VALID += [gzip.compress(data, mtime=0) for data in VALID]  # without a time, so that the names of the tests are the same in every process

Change = Callable[[bytearray], None]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, put in, taken out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["set", "insert", "delete", "double", "cut"]))
        if kind == "set" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[place:place] = draw(
                st.sampled_from([b"\x00", b'"', b"\n", b"[", b"{", b"}", b",", b"\xff", b"<|im_start|>", b"<|im_end|>"]) | st.binary(max_size=8)
            )
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 16))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        else:
            del data[place:]
    return bytes(data)


RANDOM = st.binary(max_size=200) | st.builds(
    bytes.__add__,
    st.sampled_from([b"PAR1", b"\x1f\x8b\x08", b"[", b"{", b"query,response\n", b"<|im_start|>", b"\xff\xfe", b"\xef\xbb\xbf", b"text\n"]),
    st.binary(max_size=100),
)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.one_of(mutated(), mutated(), mutated(), RANDOM))
def test_any_bytes_end_in_rows_or_in_a_reason(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    started = time.monotonic()
    try:
        for row in read_rows(SourceFile("s3://data/rows", path)):
            if row.cause:
                assert row.value is None
                continue
            try:
                messages = normalise(row.value).messages
            except RowError as error:
                assert error.cause
            else:
                assert messages[-1]["role"] == "assistant"
    except StepError as error:
        assert error.code is Exit.DATA_INVALID
        assert error.reason in (Reason.DATA_INVALID, Reason.DATASET_EMPTY)
        assert error.message.startswith("s3://data/rows ")
        assert len(error.message) < 1000
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("data", VALID, ids=lambda data: data[:12].hex())
def test_files_that_are_mutated_are_valid(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    found = list(read_rows(SourceFile("s3://data/rows", path)))
    assert found
    assert [normalise(row.value).messages[-1]["role"] for row in found] == ["assistant"] * len(found)
