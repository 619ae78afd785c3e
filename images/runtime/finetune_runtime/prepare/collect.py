"""First pass over the data: every row is read, normalised and encoded; what is valid goes to a file, only numbers stay in memory."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from finetune_runtime.sources.dataset import SourceFile

from .encode import Encoded
from .faults import Fault, InvalidRow, RowError
from .formats import Format, RawRow, read_rows, recognise_file
from .rows import Message, normalise
from .sample import Example, Sample, as_request
from .split import Digests, Mask, choose_sample

KEPT_EXAMPLES = 100
KEPT_COLUMNS = 1000  # names; a file may have new ones in every row
KEPT_OF_EACH = 3  # invalid rows of a kind that are kept beyond that number

Encode = Callable[[list[Message]], Encoded]


@dataclass(frozen=True)
class Source:
    """What the user named: `files` are fetched as they are asked for, `samples` is the number of rows to take, None for all."""

    uri: str
    files: Iterable[SourceFile]
    samples: int | None = None


@dataclass
class Counts:
    """Rows of one source. `valid`: those that were taken; `sampled_out`: valid ones that the draw left out."""

    source: str
    samples: int | None = None
    files: int = 0
    read: int = 0
    valid: int = 0
    invalid: int = 0
    sampled_out: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)  # of files
    encodings: Counter[str] = field(default_factory=Counter)


@dataclass
class _Numbers:
    """One entry a valid row: 17 bytes of memory."""

    digests: "array[int]" = field(default_factory=lambda: array("Q"))  # 64 bits of a row's SHA-256, to find copies
    tokens: "array[int]" = field(default_factory=lambda: array("I"))
    trainable: "array[int]" = field(default_factory=lambda: array("I"))
    reasons: "array[int]" = field(default_factory=lambda: array("B"))  # 1 where the last answer opens with its reasoning

    def keep(self, start: int, mask: Mask) -> None:
        """Drops the entries from `start` on that the mask leaves out."""
        for numbers in (self.digests, self.tokens, self.trainable, self.reasons):
            numbers[start:] = array(numbers.typecode, compress(numbers[start:], mask))


@dataclass
class Collected:
    """The valid rows, one line of JSON each in `path`, and what the report says about them."""

    path: Path
    sources: list[Counts] = field(default_factory=list)
    first_invalid: list[InvalidRow] = field(default_factory=list)
    unused_columns: Counter[str] = field(default_factory=Counter)
    numbers: _Numbers = field(default_factory=_Numbers)

    @property
    def valid(self) -> int:
        """Rows in the file."""
        return len(self.numbers.tokens)

    @property
    def files(self) -> int:
        """Files that were read."""
        return sum(counts.files for counts in self.sources)

    @property
    def read(self) -> int:
        """Rows that were read."""
        return sum(counts.read for counts in self.sources)

    @property
    def invalid(self) -> int:
        """Rows that cannot be trained on."""
        return sum(counts.invalid for counts in self.sources)

    @property
    def faults(self) -> Counter[Fault]:
        """Invalid rows by kind."""
        return sum((counts.faults for counts in self.sources), Counter[Fault]())

    @property
    def reasoning(self) -> int:
        """Rows whose last answer opens with its reasoning."""
        return sum(self.numbers.reasons)

    @property
    def digests(self) -> Digests:
        """64 bits of the SHA-256 of each row."""
        return np.asarray(self.numbers.digests, dtype=np.uint64)

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """Tokens of each row."""
        return np.asarray(self.numbers.tokens, dtype=np.uint32)

    @property
    def trainable(self) -> NDArray[np.uint32]:
        """Tokens of each row that the loss counts."""
        return np.asarray(self.numbers.trainable, dtype=np.uint32)


def collect(
    sources: Iterable[Source], encode: Encode, path: Path, *, system: str = "", sample: Sample, seed: int = 0, validation: Digests | None = None
) -> Collected:
    """Writes the valid rows of all sources to `path`, in their order; rows without a system prompt get `system` unless it is empty.

    A source with a sample count gives that many of its valid rows, drawn by the seed. A row whose digest is in `validation` leaks, and is invalid.
    """
    result = Collected(path)
    taker = _Taker(result, encode, system, sample, np.unique(validation) if validation is not None else None)
    with path.open("w+b") as out:
        for number, source in enumerate(sources):
            counts = Counts(source.uri, source.samples)
            result.sources.append(counts)
            first_row, first_byte = result.valid, out.tell()
            for file in source.files:
                taker.take_file(file, counts, out)
            valid = result.valid - first_row
            if source.samples is not None and source.samples < valid:
                mask = choose_sample(valid, source.samples, seed + number)
                _thin(out, first_byte, mask)
                result.numbers.keep(first_row, mask)
            counts.valid = result.valid - first_row
            counts.sampled_out = valid - counts.valid
    return result


def _thin(out: BinaryIO, start: int, mask: Mask) -> None:
    """Drops lines behind byte `start` that the mask leaves out, in place: a line is never written behind where it was read."""
    out.flush()
    out.seek(start)
    with Path(out.name).open("rb") as lines:
        lines.seek(start)
        out.writelines(compress(lines, mask))
    out.truncate()


@dataclass(frozen=True)
class _Taker:
    result: Collected
    encode: Encode
    system: str
    sample: Sample
    validation: Digests | None  # ascending

    def take_file(self, file: SourceFile, counts: Counts, out: BinaryIO) -> None:
        layout = recognise_file(file)
        counts.files += 1
        counts.formats[str(layout)] += 1
        if layout.encoding:
            counts.encodings[layout.encoding] += 1
        broken = Fault.NOT_JSON if layout.format is Format.JSON_LINES else Fault.UNREADABLE
        for raw in read_rows(file, layout, self.result.path.parent):
            counts.read += 1
            try:
                if raw.cause:
                    raise RowError(broken, raw.cause)  # noqa: TRY301  one place where faults are counted
                self._take(raw, file, out)
            except RowError as error:
                counts.invalid += 1
                counts.faults[error.fault] += 1
                if len(self.result.first_invalid) < KEPT_EXAMPLES or counts.faults[error.fault] <= KEPT_OF_EACH:
                    self.result.first_invalid.append(InvalidRow(file.uri, raw.number, error.fault, error.cause))

    def _take(self, raw: RawRow, file: SourceFile, out: BinaryIO) -> None:
        row = normalise(raw.value)
        filled_in = bool(self.system) and row.messages[0]["role"] != "system"
        head: list[Message] = [{"role": "system", "content": self.system}] if filled_in else []
        messages = head + row.messages
        line = json.dumps({"messages": messages}, ensure_ascii=False).encode()
        digest = int.from_bytes(hashlib.sha256(line).digest()[:8])
        if self._leaks(digest):
            raise RowError(Fault.LEAK, "the row is also a validation row, and would make the evaluation loss look better than it is")
        encoded = self.encode(messages)
        out.write(line + b"\n")
        example = Example(messages, as_request(messages, system_filled_in=filled_in), f"{file.uri}:{raw.number}")
        self.sample.add(example)
        numbers = self.result.numbers
        numbers.digests.append(digest)
        numbers.tokens.append(len(encoded.input_ids))
        numbers.trainable.append(encoded.trainable)
        numbers.reasons.append(example.reasons)
        if len(self.result.unused_columns) < KEPT_COLUMNS:
            self.result.unused_columns.update(row.unused)

    def _leaks(self, digest: int) -> bool:
        if self.validation is None:
            return False
        place = int(np.searchsorted(self.validation, np.uint64(digest)))
        return place < len(self.validation) and int(self.validation[place]) == digest
