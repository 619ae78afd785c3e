"""Why a row cannot be trained on."""

from dataclasses import dataclass
from enum import StrEnum

MAX_CAUSE = 300  # characters; a row may have thousands of columns


class Fault(StrEnum):
    """Kinds of invalid rows, as counted in the report."""

    NOT_JSON = "NotJSON"
    UNREADABLE = "Unreadable"
    CHATML = "BrokenChatML"
    COLUMNS = "UnknownColumns"
    UNSUPPORTED = "UnsupportedContent"
    ROLE = "UnknownRole"
    ORDER = "RoleOrder"
    CONTENT = "EmptyContent"
    TEMPLATE = "TemplateRefused"
    LENGTH = "TooLong"
    UNTRAINABLE = "NothingToLearn"
    LEAK = "LeaksIntoValidation"


class RowError(Exception):
    """A row is invalid; the text says why in words of the row."""

    def __init__(self, fault: Fault, cause: str) -> None:
        super().__init__(cause)
        self.fault = fault
        self.cause = cause if len(cause) <= MAX_CAUSE else f"{cause[:MAX_CAUSE]} [...]"


@dataclass(frozen=True)
class InvalidRow:
    """An invalid row by the place where its user finds it."""

    source: str
    row: int
    fault: Fault
    cause: str

    def __str__(self) -> str:
        return f"{self.source}:{self.row}: {self.cause}"
