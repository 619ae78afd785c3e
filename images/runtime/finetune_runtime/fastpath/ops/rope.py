"""Norm of queries and keys (Qwen3) and rotary embedding, in one pass over the projection's output.

A head x = (a, b) of DIM numbers, in halves, turns by the angles of its position: y = (a cos - b sin, b cos + a sin). A turn's inverse is its transpose, so

    da = ya' cos + yb' sin,   db = yb' cos - ya' sin        for y' = dL/dy.

The norm before it is RMSNorm over the head (see ops.rmsnorm); nothing of it is kept for the backward pass, it is done again. Values just pass.
"""

import torch

from finetune_runtime.fastpath.backend import use_kernels

from . import rmsnorm

Norms = tuple[torch.Tensor, torch.Tensor] | None  # weights [DIM] of the query's and of the key's norm


def forward(
    qkv: torch.Tensor, heads: tuple[int, int, int], norms: Norms, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [T, HQ, DIM] and k [T, HK, DIM], both contiguous, of qkv [T, (HQ + 2 HK) * DIM], whose rows may be part of wider ones.

    heads: HQ, HK, DIM. cos, sin [P, DIM]: of token t they are row t % P, so rows of one length need one row's angles only.
    """
    q_heads, k_heads, dim = heads
    q, k = (torch.empty(qkv.shape[0], count, dim, dtype=qkv.dtype, device=qkv.device) for count in (q_heads, k_heads))
    if use_kernels(qkv):
        from finetune_runtime.fastpath.kernels import rope

        rope.forward(qkv, norms, cos, sin, eps, q, k)
        return q, k
    cosines, sines = (_of_tokens(table, qkv.shape[0]) for table in (cos, sin))
    for index, (out, head) in enumerate(((q, 0), (k, q_heads))):
        x = _heads(qkv, head, out.shape[1], dim)
        if norms:
            x = rmsnorm.forward(x.reshape(-1, dim), norms[index], eps)[0].view(x.shape)
        a, b = x.to(cosines.dtype).chunk(2, -1)
        out.copy_(torch.cat((a, b), -1) * cosines + torch.cat((-b, a), -1) * sines)
    return q, k


def backward(
    qkv: torch.Tensor,
    heads: tuple[int, int, int],
    norms: Norms,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
) -> torch.Tensor:
    """Gradient of qkv, written to `out` [T, (HQ + 2 HK) * DIM], which may be a slice, for gradients of q [T, HQ, DIM], k and v [T, HK, DIM]."""
    q_heads, k_heads, dim = heads
    if use_kernels(qkv):
        from finetune_runtime.fastpath.kernels import rope

        rope.backward(qkv, norms, cos, sin, eps, gradients, out)
        return out
    cosines, sines = (_of_tokens(table, qkv.shape[0]) for table in (cos, sin))
    for index, head in enumerate((0, q_heads)):
        dy = gradients[index].to(cosines.dtype)
        a, b = (dy * sines).chunk(2, -1)
        grad = dy * cosines + torch.cat((b, -a), -1)
        if norms:
            x = _heads(qkv, head, dy.shape[1], dim).reshape(-1, dim)
            rstd = rmsnorm.forward(x, norms[index], eps)[1]
            # In the turn's own width: rounding in between would be one more than the kernels do.
            flat = grad.reshape(-1, dim)
            grad = rmsnorm.backward(flat, x.to(grad.dtype), norms[index].to(grad.dtype), rstd, out=torch.empty_like(flat)).view(dy.shape)
        out[:, head * dim : (head + dy.shape[1]) * dim] = grad.reshape(qkv.shape[0], -1)
    out[:, (q_heads + k_heads) * dim :] = gradients[2].reshape(qkv.shape[0], -1)
    return out


def _heads(qkv: torch.Tensor, first: int, count: int, dim: int) -> torch.Tensor:
    return qkv[:, first * dim : (first + count) * dim].unflatten(1, (count, dim))


def _of_tokens(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """[T, 1, DIM], at least float32."""
    wide = table if table.dtype == torch.float64 else table.float()
    return wide.repeat(tokens // table.shape[0], 1)[:, None]
