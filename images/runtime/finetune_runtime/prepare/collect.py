"""First pass over the data: every row is read, normalised and encoded; what is valid goes to a file, only numbers stay in memory."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from finetune_runtime.sources.dataset import SourceFile

from .encode import Encoded
from .faults import Fault, InvalidRow, RowError
from .formats import RawRow, read_rows
from .rows import Conversation, Message, normalise
from .sample import Example, Sample, as_request

KEPT_EXAMPLES = 100


@dataclass
class Collected:
    """The valid rows, one line of JSON each in `path`, and what the report says about them. 16 bytes of memory a row."""

    path: Path
    files: int = 0
    read: int = 0
    invalid: int = 0
    digests: "array[int]" = field(default_factory=lambda: array("Q"))  # 64 bits of a row's SHA-256, to find copies
    tokens: "array[int]" = field(default_factory=lambda: array("I"))
    trainable: "array[int]" = field(default_factory=lambda: array("I"))
    faults: Counter[Fault] = field(default_factory=Counter)
    first_invalid: list[InvalidRow] = field(default_factory=list)
    unused_columns: Counter[str] = field(default_factory=Counter)
    reasoning: int = 0  # rows whose last answer opens with its reasoning

    @property
    def valid(self) -> int:
        """Rows in the file."""
        return len(self.tokens)


def collect(files: Iterable[SourceFile], encode: Callable[[list[Message]], Encoded], path: Path, *, system: str, sample: Sample) -> Collected:
    """Writes the valid rows of all files to `path`, in their order; rows without a system prompt get `system` unless it is empty."""
    result = Collected(path)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for file in files:
            result.files += 1
            for raw in read_rows(file):
                result.read += 1
                try:
                    _take(_conversation(raw), f"{file.uri}:{raw.number}", encode, out, result, system=system, sample=sample)
                except RowError as error:
                    result.invalid += 1
                    result.faults[error.fault] += 1
                    if len(result.first_invalid) < KEPT_EXAMPLES:
                        result.first_invalid.append(InvalidRow(file.uri, raw.number, error.fault, error.cause))
    return result


def _conversation(raw: RawRow) -> Conversation:
    if raw.cause:
        raise RowError(Fault.NOT_JSON, raw.cause)
    return normalise(raw.value)


def _take(row: Conversation, where: str, encode: Callable[[list[Message]], Encoded], out: IO[str], result: Collected, *, system: str, sample: Sample) -> None:
    filled_in = bool(system) and row.messages[0]["role"] != "system"
    head: list[Message] = [{"role": "system", "content": system}] if filled_in else []
    messages = head + row.messages
    encoded = encode(messages)
    line = json.dumps({"messages": messages}, ensure_ascii=False)
    out.write(line + "\n")
    example = Example(messages, as_request(messages, system_filled_in=filled_in), where)
    sample.add(example)
    result.digests.append(int.from_bytes(hashlib.sha256(line.encode()).digest()[:8]))
    result.tokens.append(len(encoded.input_ids))
    result.trainable.append(encoded.trainable)
    result.unused_columns.update(row.unused)
    result.reasoning += example.reasons
