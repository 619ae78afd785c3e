"""W + scale * B A in blocks of rows, in double precision: the sum is rounded once, to the type that the base is stored in.

So a block's bytes do not depend on the number of threads or on the processor's way to multiply, but for one element in many billions.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from finetune_runtime.contract.result import Exit, Reason, StepError

from .adapter import Delta
from .tensors import FLOATS, Tensor

_BLOCK = 2**22  # elements: a block takes about 100 MiB while it is worked on
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Addend:
    """One delta with its two factors in memory: together a few MiB."""

    def __init__(self, delta: Delta, weights: Path) -> None:
        """`weights`: the adapter's file."""
        self._delta = delta
        a, b = (_load(weights, tensor).double() for tensor in (delta.a, delta.b))
        # As one product, rows x rank times rank x columns, of the shape of the tensor that it is added to.
        self._left, self._right = (a.T, b.T) if delta.embedding else (b, a)

    def add(self, tensor: Tensor, weights: Path) -> Iterator[bytes]:
        """Bytes of the sum, block by block. `tensor`: of the file `weights`. Raises StepError ModelInvalid for sums that are no numbers."""
        rows, columns = tensor.shape
        step = max(1, _BLOCK // max(1, columns))
        with weights.open("rb") as file:
            file.seek(tensor.start)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                block = _tensor(file.read(count * columns * FLOATS[tensor.dtype]), tensor.dtype).reshape(count, columns).double()
                block.addmm_(self._left[first : first + count], self._right, alpha=self._delta.scale)
                yield _bytes(block, tensor)


def check(tensor: Tensor, delta: Delta | None) -> str:
    """Why a delta cannot be added to a tensor of the base; empty when it can."""
    if tensor.dtype not in FLOATS:
        return f"{tensor.name} of the base model is stored as {tensor.dtype}, which is quantised or unknown"
    if delta and tensor.shape != delta.shape:
        return f"{tensor.name} of the base model has the shape {tensor.shape}, and the adapter was made for {delta.shape}"
    return ""


def _bytes(block: torch.Tensor, tensor: Tensor) -> bytes:
    stored = block.to(_TYPES[tensor.dtype])
    if not torch.isfinite(stored).all():
        raise StepError(
            Exit.MODEL_INVALID,
            Reason.MODEL_INVALID,
            f"{tensor.name} would hold numbers that {tensor.dtype} cannot hold: adapter or base is damaged, or the training diverged. Train again with a lower "
            "training.learningRate.",
        )
    return bytes(stored.contiguous().view(torch.uint8).numpy().tobytes())


def _load(path: Path, tensor: Tensor) -> torch.Tensor:
    with path.open("rb") as file:
        file.seek(tensor.start)
        return _tensor(file.read(tensor.end - tensor.start), tensor.dtype).reshape(tensor.shape)


def _tensor(data: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=_TYPES[dtype])
