"""What all readers share."""

from dataclasses import dataclass
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError

MAX_ROW = 16 * 2**20  # bytes of a line, characters of a list element; far above the longest row that any model takes
CHUNK = 2**20


@dataclass(frozen=True)
class RawRow:
    """One row. `number` is where its user finds it, from 1: the line (JSON Lines, ChatML: of its first turn), the place in a JSON list, the row below
    the header (CSV, TSV) or the row (Parquet). `cause` says why there is no value.
    """

    number: int
    value: Any = None
    cause: str = ""


def invalid(message: str) -> StepError:
    """The file as a whole cannot be read."""
    return StepError(Exit.DATA_INVALID, Reason.DATA_INVALID, message)
