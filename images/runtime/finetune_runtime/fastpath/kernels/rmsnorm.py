"""RMSNorm in Triton: one program per row, the row in registers."""

import torch
import triton
import triton.language as tl

from finetune_runtime.fastpath.backend import power_of_two


@triton.jit
def _rms_norm_forward(x_ptr, weight_ptr, y_ptr, rstd_ptr, x_stride, y_stride, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    normed = (x * rstd).to(y_ptr.dtype.element_ty).to(tl.float32)  # rounded where the model's own norm rounds
    tl.store(y_ptr + row * y_stride + column, (normed * weight).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def _rms_norm_backward(
    dy_ptr, x_ptr, weight_ptr, rstd_ptr, residual_ptr, scale_ptr, dx_ptr, y_ptr,
    dy_stride, x_stride, residual_stride, dx_stride, width, RESIDUAL: tl.constexpr, SCALE: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dy_ptr + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    grad *= weight
    if SCALE:
        grad *= tl.load(scale_ptr)
    rstd = tl.load(rstd_ptr + row)
    normed = x * rstd
    if AGAIN:
        y = normed.to(y_ptr.dtype.element_ty).to(tl.float32) * weight
        tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)
    dx = rstd * (grad - normed * (tl.sum(grad * normed, 0) / width))
    if RESIDUAL:
        dx += tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + row * dx_stride + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float, y: torch.Tensor) -> torch.Tensor:
    """See ops.rmsnorm.forward; writes `y`, returns rstd."""
    rows, width = x.shape
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    _rms_norm_forward[(rows,)](x, weight, y, rstd, x.stride(0), y.stride(0), width, eps, BLOCK=power_of_two(width), num_warps=_warps(width))
    return rstd


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    dx: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    again: torch.Tensor | None,
) -> None:
    """See ops.rmsnorm.backward; writes `dx` and `again`."""
    rows, width = x.shape
    _rms_norm_backward[(rows,)](
        dy,
        x,
        weight,
        rstd,
        x if residual is None else residual,
        rstd if scale is None else scale,
        dx,
        dx if again is None else again,
        dy.stride(0),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        dx.stride(0),
        width,
        RESIDUAL=residual is not None,
        SCALE=scale is not None,
        AGAIN=again is not None,
        BLOCK=power_of_two(width),
        num_warps=_warps(width),
    )


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4
