"""Curves as numbers: points, thinned out and smoothed, and the ticks of an axis."""

import math
from collections.abc import Sequence

Point = tuple[float, float]

MAX_POINTS = 600
_SMOOTHED_SHARE = 25  # the smoothed curve averages over about one 25th of all points


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` (>= 4) of the points, in their order: the first, the last, and the lowest and highest of equal stretches between them."""
    if len(points) <= limit:
        return list(points)
    inner, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        low, high = (pick(range(len(stretch)), key=lambda i: stretch[i][1]) for pick in (min, max))
        kept += [stretch[i] for i in sorted({low, high})]
    return [*kept, points[-1]]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average, without the usual bias towards zero at its beginning. Noise goes, and so does some of the curve's delay."""
    span = max(5, len(points) // _SMOOTHED_SHARE)
    keep = 1 - 2 / (span + 1)
    total = weight = 0.0
    averaged = []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        averaged.append((x, total / weight))
    return averaged


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers at equal distances (1, 2 or 5 times a power of ten), about `count`, of which the first and last enclose both values."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin if low else 0.0, high + margin
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def whole_ticks(first: int, last: int, count: int = 6) -> list[int]:
    """Whole round numbers within both values, for an axis that ends at its data."""
    return sorted({int(tick) for tick in ticks(first, last, count) if first <= tick <= last and tick == int(tick)})
