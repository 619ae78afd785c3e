"""What the processes of one training agree on, one for each GPU. All of them must ask the same questions in the same order.

They talk on the CPU, so that nobody waits for what the GPUs have still to do.
"""

from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

# The longest that one process may be ahead of another between two questions: a step, an evaluation's batch, or a checkpoint that is written.
_PATIENCE = timedelta(minutes=30)


@cache
def _group() -> Any:
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def largest(*values: float) -> list[float]:
    """The largest of each value over all processes. It also makes them wait for each other."""
    if _alone():
        return list(values)
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_group())
    return [float(value) for value in found]


def first(text: str) -> str:
    """The text of the first process that has one."""
    if _alone():
        return text
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, text, group=_group())
    return next(filter(None, found), "")
