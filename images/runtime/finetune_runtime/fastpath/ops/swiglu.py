"""The gate of the MLP: act = silu(g) * u with silu(g) = g * s and s = 1 / (1 + exp(-g)).

dL/du = d * silu(g)
dL/dg = d * u * s * (1 + g * (1 - s))        because s' = s (1 - s)
"""

import torch
import torch.nn.functional as F

from finetune_runtime.fastpath.backend import use_kernels


def forward(both: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """act [T, I], written to `out`, which may be a slice, for both = [g | u] of [T, 2 I]."""
    if use_kernels(both):
        from finetune_runtime.fastpath.kernels import swiglu

        swiglu.forward(both, out)
        return out
    gate, up = both.chunk(2, -1)
    return out.copy_(F.silu(gate) * up)


def backward_(both: torch.Tensor, grad: torch.Tensor) -> None:
    """Overwrites `both` [T, 2 I] with its gradient, and `grad` [T, I], which is the gradient of act, with act itself.

    The backward pass needs act once more, for the adapter of the down projection, and neither of the old contents: no memory is added, nothing is read twice.
    """
    if use_kernels(both):
        from finetune_runtime.fastpath.kernels import swiglu

        swiglu.backward_(both, grad)
        return
    gate, up = (x if x.dtype == torch.float64 else x.float() for x in both.chunk(2, -1))
    wide = grad if grad.dtype == torch.float64 else grad.float()
    act = forward(both, torch.empty_like(grad))
    sigmoid = torch.sigmoid(gate)
    both.copy_(torch.cat((wide * up * sigmoid * (1 + gate * (1 - sigmoid)), wide * F.silu(gate)), -1))
    grad.copy_(act)
