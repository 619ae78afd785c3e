"""Frozen weights: where they are, and the one buffer that holds the weight in use with 16 bits."""

from typing import Any

import torch

from .ops import dequantize


class FrozenLinear:
    """The base layer of an adapted linear layer: bitsandbytes' 4 or 8 bits, or plain numbers. y = x W^T + bias."""

    def __init__(self, module: Any) -> None:
        self.outputs, self.inputs = module.out_features, module.in_features
        self.bias: torch.Tensor | None = module.bias
        self._module, self._kind = module, type(module).__name__

    def write(self, out: torch.Tensor, row: int = 0, column: int = 0) -> None:
        """Writes the part of W [outputs, inputs] that begins at (row, column) to `out` [rows, columns], which may be a slice of a wider buffer."""
        weight = self._module.weight
        rows, columns = slice(row, row + out.shape[0]), slice(column, column + out.shape[1])
        if self._kind == "Linear4bit":
            dequantize.nf4(weight.data, weight.quant_state, out, row, column)
        elif self._kind == "Linear8bitLt":
            state = self._module.state
            values = weight.data if weight.data.dtype == torch.int8 else state.CB
            dequantize.int8(values[rows, columns], (weight.SCB if state.SCB is None else state.SCB)[rows], out)
        else:
            out.copy_(weight[rows, columns])


class Workspace:
    """One buffer for every weight in use. It never moves, so that CUDA graphs may refer to it."""

    def __init__(self, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty(numbers, dtype=dtype, device=device)

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        """[rows, columns], contiguous, with whatever was there."""
        return self._buffer[: rows * columns].view(rows, columns)
