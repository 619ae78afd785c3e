"""The shape of report.json. Its keys are read by the report page and by users: add to them, never rename them."""

from typing import Any, TypedDict


class Bucket(TypedDict):
    """Rows of more tokens than the bucket before allows, and at most `upTo`."""

    upTo: int
    rows: int


class TokenReport(TypedDict):
    """Tokens of the training rows. `percentiles`: share of rows in percent -> tokens. `tooLongShare`: of all rows read, those dropped as TooLong."""

    total: int
    trainable: int
    trainableShare: float
    tooLongShare: float
    percentiles: dict[str, int]
    histogram: list[Bucket]


class SourceReport(TypedDict):
    """Rows of one source: read = valid + invalid + sampledOut. `format` and `encoding` name all that its files have."""

    source: str
    samples: int | None
    files: int
    format: str
    encoding: str
    read: int
    valid: int
    invalid: int
    sampledOut: int
    causes: dict[str, int]


class RowsReport(TypedDict):
    """Rows of one side, training or validation, and of each of its sources."""

    files: int
    read: int
    valid: int
    invalid: int
    sampledOut: int
    causes: dict[str, int]
    sources: list[SourceReport]


class Report(TypedDict):
    """Content of report.json.

    `rows`: by side, None for a validation that was split off. `split`: rows that are written, by side. `leaks`: training rows refused or dropped because
    they are validation rows. `invalid`: the first invalid rows, {source, row, fault, cause}.
    """

    model: dict[str, Any]
    chatTemplate: dict[str, Any]
    ending: dict[str, Any]
    rows: dict[str, RowsReport | None]
    split: dict[str, int]
    tokens: TokenReport
    duplicates: int
    leaks: int
    invalid: list[dict[str, Any]]
    sha256: str
    warnings: list[str]
