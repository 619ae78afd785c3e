"""RMSNorm: y = w * x / sqrt(mean(x^2) + eps), row by row.

With r = (mean(x^2) + eps)^(-1/2), n = x * r and g = dy * w (all of one row):

    dL/dx_j = sum_i g_i d(x_i r)/dx_j = r * g_j - x_j r^3 / N * sum_i g_i x_i = r * (g_j - n_j * mean(g * n))

The weight is frozen and has no gradient.
"""

import torch

from finetune_runtime.fastpath.backend import use_kernels


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, N], weight [N] -> y [T, N] in x's dtype (written to `out`, which may be a slice, if given) and r [T] in float32."""
    y = torch.empty_like(x) if out is None else out
    if use_kernels(x):
        from finetune_runtime.fastpath.kernels import rmsnorm

        return y, rmsnorm.forward(x, weight, eps, y)
    wide = _wide(x)
    rstd = torch.rsqrt(wide.pow(2).mean(-1) + eps)
    y.copy_(weight * (wide * rstd[:, None]).to(x.dtype))
    return y, rstd


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    again: torch.Tensor | None = None,
) -> torch.Tensor:
    """dx [T, N], written to `out`, which may be a slice, for dy, x [T, N], weight [N], rstd [T] of the forward pass.

    residual [T, N]: the gradient that reaches x beside the norm; it is added. scale [1] float32: dy is multiplied by it.
    again [T, N], contiguous: gets y once more, whose parts are at hand.
    """
    if use_kernels(x):
        from finetune_runtime.fastpath.kernels import rmsnorm

        rmsnorm.backward(dy, x, weight, rstd, out, residual, scale, again)
        return out
    grad = _wide(dy) * _wide(weight)
    if scale is not None:
        grad = grad * scale
    normed = _wide(x) * rstd[:, None]
    if again is not None:
        again.copy_(weight * normed.to(x.dtype))
    result = rstd[:, None] * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    return out.copy_(result if residual is None else result + _wide(residual))


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
