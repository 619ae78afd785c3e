"""Dropout in Triton; the generator is that of ops.dropout, bit for bit."""

import torch
import triton
import triton.language as tl

from finetune_runtime.fastpath.backend import power_of_two


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["site"])
def _dropout(x_ptr, y_ptr, word_ptr, site, width, x_stride, y_stride, threshold, factor, ADD: tl.constexpr, BLOCK: tl.constexpr):
    key = _mixed(tl.load(word_ptr).to(tl.uint32) + site.to(tl.uint32) * 0x9E3779B1)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = (row * width + column).to(tl.uint32)
    kept = (_mixed((place * 0x9E3779B1) ^ key) >> 8).to(tl.int32) >= threshold
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(kept, x * factor, 0.0)
    if ADD:
        y += tl.load(y_ptr + row * y_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_stride + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def apply(x: torch.Tensor, y: torch.Tensor, word: torch.Tensor, site: int, threshold: int, factor: float, *, add: bool) -> None:
    """See ops.dropout; writes to `y`."""
    rows, width = x.shape
    block = min(2048, power_of_two(width))
    _dropout[(rows, triton.cdiv(width, block))](
        x, y, word, site, width, x.stride(0), y.stride(0), threshold, factor, ADD=add, BLOCK=block, num_warps=8 if block > 512 else 4
    )
