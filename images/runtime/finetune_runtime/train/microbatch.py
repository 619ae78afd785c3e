"""Rows per forward pass on one GPU: the largest that fits, always a divisor of its part of the effective batch, so that no step changes its size."""

from typing import Literal

AUTO_GPU = 8
AUTO_CPU = 4


def initial(requested: int | Literal["Auto"], part: int, *, cpu_only: bool, proven: int = 0) -> int:
    """The micro-batch to start with, of a `part` of the effective batch. `proven` is what an interrupted run had come down to, 0 when there was none."""
    limit = (AUTO_CPU if cpu_only else AUTO_GPU) if requested == "Auto" else requested
    return _divisor(part, min(limit, proven or limit))


def smaller(micro: int, part: int) -> int | None:
    """At most half as many rows; None when it is one row already."""
    return _divisor(part, micro // 2) if micro > 1 else None


def _divisor(part: int, limit: int) -> int:
    """The largest divisor of `part` that is not above `limit`."""
    return next(size for size in range(min(limit, part), 0, -1) if part % size == 0)
