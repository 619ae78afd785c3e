"""Quantised weights to 16 bits in Triton, one launch per weight also where the scales are quantised themselves."""

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCKS = 64  # quantisation blocks of one program


@triton.jit
def _dequantize_nf4(
    packed_ptr, absmax_ptr, nested_code_ptr, nested_absmax_ptr, offset_ptr, code_ptr, out_ptr,
    blocks, blocks_of_part, blocks_of_row, first, out_stride,
    NESTED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = number < blocks
    row = number // blocks_of_part
    place = number % blocks_of_part
    block = (first + row * blocks_of_row + place).to(tl.int64)
    packed = tl.load(packed_ptr + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask=inside[:, None], other=0).to(tl.int32)
    if NESTED:
        index = tl.load(absmax_ptr + block, mask=inside, other=0).to(tl.int32)
        absmax = tl.load(nested_code_ptr + index) * tl.load(nested_absmax_ptr + block // 256, mask=inside, other=0.0) + tl.load(offset_ptr)
    else:
        absmax = tl.load(absmax_ptr + block, mask=inside, other=0.0)
    high = tl.load(code_ptr + (packed >> 4)) * absmax[:, None]
    low = tl.load(code_ptr + (packed & 15)) * absmax[:, None]
    start = row.to(tl.int64) * out_stride + place * 64
    values = tl.interleave(high, low).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start[:, None] + tl.arange(0, 64)[None, :], values, mask=inside[:, None])


@triton.jit
def _dequantize_int8(values_ptr, absmax_ptr, out_ptr, width, stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    scale = tl.load(absmax_ptr + row).to(tl.float32) / 127.0
    values = tl.load(values_ptr + row * stride + column, mask=inside, other=0).to(tl.float32) * scale
    tl.store(out_ptr + row * out_stride + column, values.to(out_ptr.dtype.element_ty), mask=inside)


def nf4(packed: torch.Tensor, state: Any, out: torch.Tensor, row: int, column: int) -> None:
    """See ops.dequantize.nf4; `state` has blocks of 64 and nested ones of 256, the weight's rows and the part's are whole blocks."""
    blocks, of_row = out.numel() // 64, state.shape[1] // 64
    nested = state.nested
    _dequantize_nf4[(triton.cdiv(blocks, _BLOCKS),)](
        packed,
        state.absmax,
        state.state2.code if nested else state.absmax,
        state.state2.absmax if nested else state.absmax,
        state.offset if nested else state.absmax,
        state.code,
        out,
        blocks,
        out.shape[1] // 64,
        of_row,
        row * of_row + column // 64,
        out.stride(0),
        NESTED=nested,
        BLOCKS=_BLOCKS,
        num_warps=4,
    )


def int8(values: torch.Tensor, absmax: torch.Tensor, out: torch.Tensor) -> None:
    """See ops.dequantize.int8."""
    rows, width = values.shape
    _dequantize_int8[(rows, triton.cdiv(width, 2048))](values, absmax, out, width, values.stride(0), out.stride(0), BLOCK=2048, num_warps=4)
