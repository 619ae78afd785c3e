"""Memory stays flat: ten times the data takes no more of it, whatever the format."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

ROOT = Path(__file__).parents[3]
SMALL, LARGE, ROW = 3_000, 15_000, 4_000  # rows, rows, bytes of a row
# Collects a file with bytes as tokens and tells the peak of its resident memory in KiB. A process of its own: the peak of a process never falls.
CHILD = """
import resource, sys
from pathlib import Path
from finetune_runtime.prepare.collect import Source, collect
from finetune_runtime.prepare.encode import Encoded
from finetune_runtime.prepare.readers import tables
from finetune_runtime.prepare.sample import Sample
from finetune_runtime.prepare.split import choose_validation
from finetune_runtime.sources.files import SourceFile

tables.BLOCK = 2**17  # Arrow reads 32 blocks ahead, which else would be all of a file

def encode(messages):
    ids = list(messages[-1]["content"].encode()[:9])
    return Encoded(ids, ids)

path, rows = Path(sys.argv[1]), int(sys.argv[2])
found = collect([Source("rows", [SourceFile("rows", path)], rows // 2)], encode, path.with_suffix(".out"), sample=Sample(seed=1))
assert (found.valid, found.read) == (rows // 2, rows), (found.valid, found.read, found.first_invalid)
choose_validation(found.digests, 0.05, 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _rows(count: int) -> Iterator[dict[str, str]]:
    return ({"query": f"Question {number}?", "response": f"{number} " + "answer, " * (ROW // 8)} for number in range(count))


def _json_lines(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in _rows(count))


def _json_list(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(("," if number else "[") + json.dumps(row, indent=1) for number, row in enumerate(_rows(count)))
        file.write("]")


def _csv(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.write("query,response\n")
        file.writelines(f'{row["query"]},"{row["response"]}\n"\n' for row in _rows(count))


def _packed_utf16(path: Path, count: int) -> None:
    with gzip.open(path, "wt", encoding="utf-16", compresslevel=1) as file:
        file.writelines(json.dumps(row) + "\n" for row in _rows(count))


def _chatml(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n{row['response']}<|im_end|>\n\n" for row in _rows(count))


def _parquet(path: Path, count: int) -> None:
    rows = _rows(count)
    with parquet.ParquetWriter(path, pa.schema([("query", pa.string()), ("response", pa.string())])) as file:
        while group := list(islice(rows, 500)):
            file.write_table(pa.Table.from_pylist(group))


FORMATS = {"JSON Lines": _json_lines, "JSON list": _json_list, "CSV": _csv, "UTF-16 in gzip": _packed_utf16, "ChatML": _chatml, "Parquet": _parquet}


@pytest.mark.parametrize("kind", FORMATS)
def test_peak_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}"
        FORMATS[kind](path, count)
        output = subprocess.run(
            [sys.executable, "-c", CHILD, path, str(count)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "images/runtime")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        path.unlink()
        return int(output) * 1024

    small, large = peak(SMALL), peak(LARGE)
    more = (LARGE - SMALL) * ROW
    assert large - small < 0.25 * more, f"{(large - small) / 2**20:.0f} MiB more for {more / 2**20:.0f} MiB more"
