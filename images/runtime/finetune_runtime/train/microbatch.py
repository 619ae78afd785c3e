"""Rows per forward pass: the largest that fits, always a divisor of the effective batch, so that no step changes its size."""

from typing import Literal

AUTO_GPU = 8
AUTO_CPU = 4


def initial(requested: int | Literal["Auto"], effective: int, *, cpu_only: bool, proven: int = 0) -> int:
    """The micro-batch to start with. `proven` is what an interrupted run had come down to, 0 when there was none."""
    limit = (AUTO_CPU if cpu_only else AUTO_GPU) if requested == "Auto" else requested
    return _divisor(effective, min(limit, proven or limit))


def smaller(micro: int, effective: int) -> int | None:
    """At most half as many rows; None when it is one row already."""
    return _divisor(effective, micro // 2) if micro > 1 else None


def _divisor(effective: int, limit: int) -> int:
    """The largest divisor of the effective batch that is not above `limit`."""
    return next(size for size in range(min(limit, effective), 0, -1) if effective % size == 0)
