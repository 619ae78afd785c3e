"""Charts of a training: which curves there are, and their geometry in SVG.

The drawing is stretched to whatever room there is, lines keep their width, and all text is HTML beside it: so a chart can be read on a
phone as well as on a desktop.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .data import Record
from .series import MAX_POINTS, Point, smooth, thin, ticks, whole_ticks

WIDTH, HEIGHT = 1000, 400  # of the drawing's coordinates
_HOVERS = 150  # strips of a chart that tell their values
_FEW = 40  # points that are shown one by one


@dataclass(frozen=True)
class Curve:
    """A line: `path` in the drawing's coordinates; `style`: raw, main, second or smooth. `dots`: its single points, if they are few."""

    label: str
    style: str
    path: str
    dots: str


@dataclass(frozen=True)
class Tick:
    """A label at a share of the axis, in percent from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Strip:
    """Part of the drawing that shows `title` under the pointer."""

    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Chart:
    """One drawing with its axes. `marks`: where training was resumed."""

    title: str
    unit: str
    newest: str
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    strips: list[Strip]
    marks: list[Strip]


@dataclass(frozen=True)
class _Line:
    label: str
    style: str
    points: list[Point]


def charts(records: Sequence[Record], resumes: Sequence[tuple[int, str]]) -> list[Chart]:
    """A chart of every value that the records know. `resumes`: step and words of each mark."""
    if not records:
        return []
    loss, evaluation = points(records, "loss"), points(records, "evalLoss")
    losses = [_Line("training", "raw" if len(loss) > _FEW else "main", loss), _Line("evaluation", "second", evaluation)]
    if len(loss) > _FEW:
        losses.insert(1, _Line("training, smoothed", "main", smooth(loss)))
    found = [
        ("Loss", "", losses),
        ("Learning rate", "", [_Line("learning rate", "main", points(records, "learningRate"))]),
        ("Gradient norm", "", [_Line("gradient norm", "main", points(records, "gradNorm"))]),
        ("Throughput", "tokens/s", [_Line("tokens/s", "main", points(records, "tokensPerSecond"))]),
        ("GPU memory, highest so far", "GiB", [_Line("GiB", "main", points(records, "gpuMemoryGiB"))]),
    ]
    span = (int(records[0]["step"]), int(records[-1]["step"]))
    return [_chart(title, unit, known, span, resumes) for title, unit, lines in found if (known := [line for line in lines if line.points])]


def points(records: Iterable[Record], name: str) -> list[Point]:
    """Step and value of the records that have it."""
    return [(float(record["step"]), float(record[name])) for record in records if record.get(name) is not None]


def number(value: float) -> str:
    """Four significant digits, as people write them: 12,345 and 3e-6, neither 1.2345e+04 nor 3e-06."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}".replace("e-0", "e-")


def _chart(title: str, unit: str, lines: list[_Line], span: tuple[int, int], resumes: Sequence[tuple[int, str]]) -> Chart:
    values = [y for line in lines for _, y in line.points]
    levels = ticks(min(values), max(values))
    first, last = span
    width, height = max(1, last - first), levels[-1] - levels[0]

    def x(step: float) -> float:
        return (step - first) / width * WIDTH if last > first else WIDTH / 2

    def y(value: float) -> float:
        return HEIGHT - (value - levels[0]) / height * HEIGHT

    curves = []
    for line in lines:
        kept = [(x(step), y(value)) for step, value in thin(line.points, MAX_POINTS)]
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in kept) if len(kept) <= _FEW else ""
        curves.append(Curve(line.label, line.style, "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in kept), dots))
    return Chart(
        title=title,
        unit=unit,
        newest=number(lines[0].points[-1][1]),
        curves=curves,
        x_ticks=[Tick(x(step) / WIDTH * 100, f"{step:,}") for step in whole_ticks(first, last)] or [Tick(50.0, str(first))],
        y_ticks=[Tick(y(level) / HEIGHT * 100, f"{level:,.10g}".replace("e-0", "e-")) for level in levels],
        strips=_strips(lines, x),
        marks=[Strip(x(step), 0.0, words) for step, words in resumes if first <= step <= last],
    )


def _strips(lines: list[_Line], x: Callable[[float], float]) -> list[Strip]:
    """The drawing cut into strips around points; each tells the values of all lines at its step."""
    by_step: dict[float, list[str]] = {}
    for line in lines:
        for step, value in line.points:
            by_step.setdefault(step, [f"step {step:,.0f}"]).append(f"{line.label} {number(value)}")
    steps = sorted(by_step)
    size = max(1, -(-len(steps) // _HOVERS))
    # Of neighbours the one that knows most speaks for all: evaluations are rare, and nobody shall miss them.
    shown = [max(steps[start : start + size], key=lambda step: len(by_step[step])) for start in range(0, len(steps), size)]
    edges = [0.0, *((x(left) + x(right)) / 2 for left, right in pairwise(shown)), float(WIDTH)]
    return [Strip(edges[i], edges[i + 1] - edges[i], "\n".join(by_step[step])) for i, step in enumerate(shown)]
