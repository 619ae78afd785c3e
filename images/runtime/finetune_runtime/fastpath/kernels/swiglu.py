"""The MLP's gate in Triton, element by element."""

import torch
import triton
import triton.language as tl

from finetune_runtime.fastpath.backend import power_of_two


@triton.jit
def _swiglu_forward(both_ptr, out_ptr, width, both_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(both_ptr + row * both_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both_ptr + row * both_stride + width + column, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)  # rounded where the model's own MLP rounds
    tl.store(out_ptr + row * out_stride + column, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(both_ptr, grad_ptr, width, both_stride, grad_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate_at = both_ptr + row * both_stride + column
    grad_at = grad_ptr + row * grad_stride + column
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_at, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = both_ptr.dtype.element_ty
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = (gate * sigmoid).to(dtype).to(tl.float32)
    tl.store(gate_at, (grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(dtype), mask=inside)
    tl.store(gate_at + width, (grad * silu).to(dtype), mask=inside)
    tl.store(grad_at, (silu * up).to(dtype), mask=inside)


def forward(both: torch.Tensor, out: torch.Tensor) -> None:
    """See ops.swiglu.forward; writes `out`."""
    _launch(_swiglu_forward, both, out)


def backward_(both: torch.Tensor, grad: torch.Tensor) -> None:
    """See ops.swiglu.backward_."""
    _launch(_swiglu_backward, both, grad)


def _launch(kernel: triton.JITFunction, both: torch.Tensor, other: torch.Tensor) -> None:
    rows, width = other.shape
    block = min(2048, power_of_two(width))
    kernel[(rows, triton.cdiv(width, block))](both, other, width, both.stride(0), other.stride(0), BLOCK=block, num_warps=8 if block > 512 else 4)
