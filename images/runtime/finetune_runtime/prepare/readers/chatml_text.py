"""Rows of a text file of raw ChatML conversations."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from finetune_runtime.prepare import chatml

from .base import MAX_ROW, RawRow


def read_chatml(stream: BinaryIO) -> Iterator[RawRow]:
    """One row `{"text": conversation}` a conversation."""
    lines = io.TextIOWrapper(stream, encoding="utf-8")
    for number, text in chatml.split(iter(lambda: lines.readline(MAX_ROW), ""), MAX_ROW):
        yield RawRow(number, cause=f"the conversation is longer than {MAX_ROW // 2**20} MiB") if text is None else RawRow(number, {"text": text})
