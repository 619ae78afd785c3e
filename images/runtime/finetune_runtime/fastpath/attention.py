"""Causal attention over rows of tokens that lie one after another, without padding between them.

Forward and backward are torch's own operators, called directly, because nothing here runs under autograd: cuDNN's where rows have one length and the GPU
is one on which it is the faster (Hopper and newer; torch chooses the same), else FlashAttention 2, which takes rows of any lengths. cuDNN makes a plan for
every new length, which takes seconds: only the first few lengths get one. On a CPU, or for float32, plain scaled_dot_product_attention row by row.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

_PLANS = 4  # lengths for which cuDNN makes a plan
_ATEN = torch.ops.aten
_FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rows:
    """Where rows begin and end among T tokens. Either `count` rows of T / count tokens, or bounds int32 [R + 1] from 0 to T and the longest row's tokens."""

    count: int = 0
    bounds: torch.Tensor | None = None
    longest: int = 0


@dataclass
class Attention:
    """The attention of a model's layers."""

    _planned: set[tuple[int, int]] = field(default_factory=set)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, Any]:
        """o [T, HQ * D] for q [T, HQ, D], k and v [T, HK, D], and what the backward pass needs. v may be a slice of wider rows."""
        tokens, _, dim = q.shape
        if not q.is_cuda or q.dtype not in _FLASH_DTYPES:
            return _plain(q, k, v, rows).reshape(tokens, -1), None
        scale = dim**-0.5
        if rows.bounds is not None:
            out, lse, state, unused, _ = _ATEN._flash_attention_forward(
                q, k, v, rows.bounds, rows.bounds, rows.longest, rows.longest, 0.0, True, False, scale=scale
            )
            return out.reshape(tokens, -1), ("flash", out, lse, state, unused)
        length = tokens // rows.count
        batched = [x.view(rows.count, length, x.shape[1], dim) for x in (q, k, v)]
        if self._cudnn(rows.count, length, dim):
            out, *saved = _ATEN._scaled_dot_product_cudnn_attention(*(x.transpose(1, 2) for x in batched), None, True, 0.0, True, False, scale=scale)
            return out.transpose(1, 2).reshape(tokens, -1), ("cudnn", out, *saved[:7])
        out, lse, state, unused, _ = _ATEN._flash_attention_forward(*batched, None, None, length, length, 0.0, True, False, scale=scale)
        return out.reshape(tokens, -1), ("flash", out, lse, state, unused)

    def backward(
        self, grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, saved: Any, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of q [T, HQ, D], k and v [T, HK, D] for that of o [T, HQ * D].

        With P = softmax(Q K^T / sqrt(D)): dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O)), dQ = dS K / sqrt(D), dK = dS^T Q / sqrt(D), where P is
        computed again block by block from the kept logarithms of its rows' sums.
        """
        if saved is None:
            return _plain_backward(grad.view(q.shape), q, k, v, rows)
        kind, out, *rest = saved
        scale = q.shape[2] ** -0.5
        if rows.bounds is not None:
            lse, state, unused = rest
            return _ATEN._flash_attention_backward(
                grad.view(q.shape), q, k, v, out, lse, rows.bounds, rows.bounds, rows.longest, rows.longest, 0.0, True, state, unused, scale=scale
            )
        length = q.shape[0] // rows.count
        batched = [x.view(rows.count, length, x.shape[1], x.shape[2]) for x in (grad.view(q.shape), q, k, v)]
        if kind == "cudnn":
            lse, q_bounds, k_bounds, q_longest, k_longest, seed, offset = rest
            gradients = _ATEN._scaled_dot_product_cudnn_attention_backward(
                *(x.transpose(1, 2) for x in batched), out, lse, seed, offset, None, q_bounds, k_bounds, q_longest, k_longest, 0.0, True, scale=scale
            )
            gradients = [x.transpose(1, 2) for x in gradients]
        else:
            lse, state, unused = rest
            gradients = _ATEN._flash_attention_backward(*batched, out, lse, None, None, length, length, 0.0, True, state, unused, scale=scale)
        dq, dk, dv = (x.reshape(-1, x.shape[2], x.shape[3]) for x in gradients)
        return dq, dk, dv

    def _cudnn(self, count: int, length: int, dim: int) -> bool:
        """Whether cuDNN attends to so many rows of one length."""
        if dim > 128 or torch.cuda.get_device_capability()[0] < 9:
            return False
        if len(self._planned) < _PLANS and length % 64 == 0:
            self._planned.add((count, length))
        return (count, length) in self._planned


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows) -> torch.Tensor:
    """[T, HQ, D], differentiable."""
    length = q.shape[0] // max(1, rows.count)
    bounds = rows.bounds.tolist() if rows.bounds is not None else [length * index for index in range(rows.count + 1)]
    outs = []
    for begin, end in pairwise(bounds):
        if end > begin:
            parts = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
            outs.append(F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outs)


def _plain_backward(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(_plain(leaves[0], leaves[1], leaves[2], rows), leaves, grad)
