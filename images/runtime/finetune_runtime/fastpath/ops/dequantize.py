"""bitsandbytes' quantised weights as numbers again.

NF4: 64 values that follow each other share a scale; a value is code[4 bits] * absmax[block], the first of two in the byte's upper half. With double
quantisation the scales are 8-bit themselves, in blocks of 256: absmax = nested_code[8 bits] * nested_absmax[block] + offset.
int8: a row's values are int8 * absmax[row] / 127.
"""

from typing import Any

import torch

from finetune_runtime.fastpath.backend import use_kernels


def nf4(packed: torch.Tensor, state: Any, out: torch.Tensor, row: int = 0, column: int = 0) -> None:
    """Writes the part of the weight [N, K] that begins at (row, column) to `out` [rows, columns], which may be a slice.

    packed: uint8 of any shape, N * K / 2 bytes; state: bitsandbytes' QuantState. `column` is a multiple of 64.
    """
    whole_blocks = state.quant_type == "nf4" and state.blocksize == 64 and not any(size % 64 for size in (state.shape[1], out.shape[1], column))
    if use_kernels(out) and whole_blocks and (not state.nested or state.state2.blocksize == 256):
        from finetune_runtime.fastpath.kernels import dequantize

        dequantize.nf4(packed, state, out, row, column)
        return
    from bitsandbytes import functional

    whole = functional.dequantize_4bit(packed, state).view(state.shape)
    out.copy_(whole[row : row + out.shape[0], column : column + out.shape[1]])


def int8(values: torch.Tensor, absmax: torch.Tensor, out: torch.Tensor) -> None:
    """Writes a weight to `out` [N, K]; both it and `values` int8 [N, K] may be slices. absmax: float32 [N]."""
    if use_kernels(out):
        from finetune_runtime.fastpath.kernels import dequantize

        dequantize.int8(values, absmax, out)
        return
    out.copy_(values.float() * (absmax.float()[:, None] / 127.0))
