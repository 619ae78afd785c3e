"""The results as a table and as the line that the benchmark ends with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """A side of the comparison. `seconds` of an optimizer step, 0: it did not run; `note` then says why."""

    name: str
    seconds: float
    reserved: int = 0  # bytes
    whole: float = 0.0  # seconds from step's end to step's end, 0: not known
    predicted: int = 0  # bytes
    note: str = ""


def number(value: float, digits: int) -> str:
    """A dash stands for what was not measured."""
    return f"{value:.{digits}f}" if value else "-"


def ratio(slower: float, faster: float) -> str:
    return f"{slower / faster:.2f}" if slower and faster else "-"


def table(rows: Sequence[Row], reference: str) -> str:
    """Markdown; the last column says how many times as long each side takes as the one named `reference`."""
    base = next((row.seconds for row in rows if row.name == reference), 0.0)
    lines = [f"| side | s/step | with loading | reserved GiB | predicted GiB | x {reference} | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{number(row.reserved / GIB, 2)} | {number(row.predicted / GIB, 2)}"
        lines.append(f"| {row.name} | {number(row.seconds, 3)} | {number(row.whole, 3)} | {sizes} | {ratio(row.seconds, base)} | {row.note} |")
    return "\n".join(lines)


def last_line(rows: Mapping[str, Row]) -> str:
    """`fast=S plain=S unsloth=S unsloth_best=S gib=G small_gib=G small_s=S`: seconds and GiB, a dash for what was not measured."""
    missing = Row("", 0.0)
    sides = {name: rows.get(name, missing) for name in ("fast", "plain", "unsloth", "unsloth best", "fast 8 GB")}
    small = sides.pop("fast 8 GB")
    seconds = [f"{name.replace(' ', '_')}={number(row.seconds, 3)}" for name, row in sides.items()]
    return " ".join(
        [*seconds, f"gib={number(sides['fast'].reserved / GIB, 2)}", f"small_gib={number(small.reserved / GIB, 2)}", f"small_s={number(small.seconds, 3)}"]
    )
