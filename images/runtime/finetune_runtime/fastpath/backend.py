"""Which implementation of the pieces a tensor takes: Triton kernels on a GPU or in Triton's interpreter, plain torch elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from typing import Literal

import torch

Choice = Literal["auto", "plain", "kernels"]

_INSTALLED = util.find_spec("triton") is not None
_choice: Choice = "auto"


def use_kernels(tensor: torch.Tensor) -> bool:
    """Whether work on this tensor is done by Triton kernels."""
    if _choice != "auto":
        return _choice == "kernels"
    return _INSTALLED and (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Makes the choice for all tensors, so that tests can compare both."""
    global _choice  # noqa: PLW0603  one switch for a process that has one thread of work
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`: Triton's blocks have such sizes only."""
    return 1 << (count - 1).bit_length()
