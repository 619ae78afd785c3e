"""The page's section about the data: report.json in words and bars."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_EXAMPLES = 3  # of each cause
_CAUSES = 20  # with examples


@dataclass(frozen=True)
class Bar:
    """A bucket of the token histogram; `share` is its length in percent of the longest bar."""

    label: str
    rows: int
    share: float


@dataclass(frozen=True)
class Cause:
    """Why rows were left out: how many, and the first of them as `source:row: cause`."""

    name: str
    rows: int
    examples: list[str]


@dataclass(frozen=True)
class RowCount:
    """Rows of one data set, or of one source of it. `unsampled`: good rows beyond the samples that were asked for."""

    name: str
    detail: str
    read: int
    valid: int
    invalid: int
    unsampled: int
    is_source: bool = False


@dataclass(frozen=True)
class DataSection:
    """Everything that the template writes about the data. `facts`: names and values; `percentiles`: names and tokens."""

    facts: list[tuple[str, str]]
    rows: list[RowCount]
    causes: list[Cause]
    percentiles: list[tuple[str, str]]
    histogram: list[Bar]
    warnings: list[str]


def section(report: Mapping[str, Any]) -> DataSection | None:
    """None without a report."""
    if not report:
        return None
    sides = {name: side for name, side in report.get("rows", {}).items() if side}
    tokens = report.get("tokens", {})
    return DataSection(
        facts=_facts(report, sides, tokens),
        rows=[row for name, side in sides.items() for row in _rows(name, side)],
        causes=_causes(sides.values(), report.get("invalid", [])),
        percentiles=[("longest" if share == "100" else f"{share} %", f"{count:,}") for share, count in tokens.get("percentiles", {}).items()],
        histogram=bars(tokens.get("histogram", [])),
        warnings=list(report.get("warnings", [])),
    )


def bars(histogram: Sequence[Mapping[str, int]]) -> list[Bar]:
    """Buckets `{"upTo": tokens, "rows": count}` in ascending order; empty ones at either end are left out."""
    filled = [number for number, bucket in enumerate(histogram) if bucket["rows"]]
    if not filled:
        return []
    most = max(bucket["rows"] for bucket in histogram)
    lower = [1, *(bucket["upTo"] + 1 for bucket in histogram)]
    shown = range(filled[0], filled[-1] + 1)
    return [Bar(f"{lower[i]:,}\u2013{histogram[i]['upTo']:,}", histogram[i]["rows"], round(100 * histogram[i]["rows"] / most, 1)) for i in shown]


def _facts(report: Mapping[str, Any], sides: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[tuple[str, str]]:
    split, template = report.get("split", {}), report.get("chatTemplate", {})
    read = sum(side["read"] for side in sides.values())
    too_long = sum(side.get("causes", {}).get("TooLong", 0) for side in sides.values())
    facts = [
        ("Training rows", f"{split.get('train', 0):,}"),
        ("Validation rows", f"{split.get('validation', 0):,}"),
        ("Tokens in training rows", f"{tokens.get('total', 0):,}"),
        ("Tokens that the loss counts", f"{100 * tokens.get('trainableShare', 0):.1f} %"),
        ("Too long rows", f"{too_long:,} ({100 * too_long / max(1, read):.2g} %)" if too_long else "none"),
        ("Duplicates", f"{report['duplicates']:,}" if report.get("duplicates") else "none"),
    ]
    leaks = report.get("leaks")
    if leaks is not None:
        facts.append(("Training rows that leak into validation", f"{leaks:,}" if leaks else "none"))
    if template:
        checked = f"{template.get('checked', 0)} conversations have the same tokens in training and serving"
        facts.append(("Chat template", f"from {template.get('origin', '')}; {checked}"))
    return facts


def _rows(name: str, side: Mapping[str, Any]) -> Iterable[RowCount]:
    yield RowCount(name, _files(side.get("files")), side["read"], side["valid"], side["invalid"], side.get("sampledOut", 0))
    for source in side.get("sources") or []:
        detail = ", ".join(str(source[key]) for key in ("format", "encoding") if source.get(key))
        read, valid, invalid, unsampled = (source.get(key, 0) for key in ("read", "valid", "invalid", "sampledOut"))
        yield RowCount(str(source.get("source", "")), detail, read, valid, invalid, unsampled, is_source=True)


def _files(count: Any) -> str:
    return f"{count} {'file' if count == 1 else 'files'}" if isinstance(count, int) else ""


def _causes(sides: Iterable[Mapping[str, Any]], invalid: Sequence[Mapping[str, Any]]) -> list[Cause]:
    counts: dict[str, int] = {}
    for side in sides:
        for name, rows in side.get("causes", {}).items():
            counts[name] = counts.get(name, 0) + rows
    examples: dict[str, list[str]] = {}
    for row in invalid:
        examples.setdefault(str(row["fault"]), []).append(f"{row['source']}:{row['row']}: {row['cause']}")
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return [Cause(name, counts[name], examples.get(name, [])[:_EXAMPLES]) for name in ordered[:_CAUSES]]
