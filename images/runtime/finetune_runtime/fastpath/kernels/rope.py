"""Norm of queries and keys and their rotary embedding in Triton: one program per token and group of heads."""

import torch
import triton
import triton.language as tl


@triton.jit
def _rope_forward(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, stride, period, eps,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * GROUP
    head = first + tl.arange(0, GROUP)[:, None]
    place = tl.arange(0, HALF)
    at = qkv_ptr + token * stride + head * DIM + place[None, :]
    a = tl.load(at).to(tl.float32)
    b = tl.load(at + HALF).to(tl.float32)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    if NORM:
        rstd = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DIM + eps)
        weight_ptr = q_weight_ptr
        if first >= Q_HEADS:
            weight_ptr = k_weight_ptr
        a_weight = tl.load(weight_ptr + place).to(tl.float32)[None, :]
        b_weight = tl.load(weight_ptr + HALF + place).to(tl.float32)[None, :]
        a = ((a * rstd[:, None]).to(dtype).to(tl.float32) * a_weight).to(dtype).to(tl.float32)
        b = ((b * rstd[:, None]).to(dtype).to(tl.float32) * b_weight).to(dtype).to(tl.float32)
    angle = (token % period) * DIM + place
    cos = tl.load(cos_ptr + angle).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angle).to(tl.float32)[None, :]
    if first < Q_HEADS:
        to = q_ptr + token * Q_HEADS * DIM + head * DIM + place[None, :]
    else:
        to = k_ptr + token * K_HEADS * DIM + (head - Q_HEADS) * DIM + place[None, :]
    tl.store(to, (a * cos - b * sin).to(dtype))
    tl.store(to + HALF, (b * cos + a * sin).to(dtype))


@triton.jit
def _rope_backward(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, dq_ptr, dk_ptr, dv_ptr, out_ptr, stride, out_stride, period, eps,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * GROUP
    head = first + tl.arange(0, GROUP)[:, None]
    place = tl.arange(0, HALF)
    to = out_ptr + token * out_stride + head * DIM + place[None, :]
    if first >= Q_HEADS + K_HEADS:
        value = dv_ptr + token * K_HEADS * DIM + (head - Q_HEADS - K_HEADS) * DIM + place[None, :]
        tl.store(to, tl.load(value))
        tl.store(to + HALF, tl.load(value + HALF))
    else:
        if first < Q_HEADS:
            source = dq_ptr + token * Q_HEADS * DIM + head * DIM + place[None, :]
        else:
            source = dk_ptr + token * K_HEADS * DIM + (head - Q_HEADS) * DIM + place[None, :]
        turned_a = tl.load(source).to(tl.float32)
        turned_b = tl.load(source + HALF).to(tl.float32)
        angle = (token % period) * DIM + place
        cos = tl.load(cos_ptr + angle).to(tl.float32)[None, :]
        sin = tl.load(sin_ptr + angle).to(tl.float32)[None, :]
        da = turned_a * cos + turned_b * sin
        db = turned_b * cos - turned_a * sin
        if NORM:
            at = qkv_ptr + token * stride + head * DIM + place[None, :]
            a = tl.load(at).to(tl.float32)
            b = tl.load(at + HALF).to(tl.float32)
            rstd = (1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DIM + eps))[:, None]
            weight_ptr = q_weight_ptr
            if first >= Q_HEADS:
                weight_ptr = k_weight_ptr
            da *= tl.load(weight_ptr + place).to(tl.float32)[None, :]
            db *= tl.load(weight_ptr + HALF + place).to(tl.float32)[None, :]
            a *= rstd
            b *= rstd
            mean = ((tl.sum(da * a, 1) + tl.sum(db * b, 1)) / DIM)[:, None]
            da = rstd * (da - a * mean)
            db = rstd * (db - b * mean)
        tl.store(to, da.to(out_ptr.dtype.element_ty))
        tl.store(to + HALF, db.to(out_ptr.dtype.element_ty))


def forward(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    k: torch.Tensor,
) -> None:
    """See ops.rope.forward; writes `q` and `k`."""
    (tokens, q_heads, dim), k_heads = q.shape, k.shape[1]
    group = _group(q_heads, k_heads)
    q_weight, k_weight = norms or (qkv, qkv)
    _rope_forward[(tokens, (q_heads + k_heads) // group)](
        qkv, q_weight, k_weight, cos, sin, q, k, qkv.stride(0), cos.shape[0], eps,
        Q_HEADS=q_heads, K_HEADS=k_heads, DIM=dim, GROUP=group, NORM=norms is not None, num_warps=4,
    )  # fmt: skip


def backward(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
) -> None:
    """See ops.rope.backward; writes `out`."""
    dq, dk, dv = (gradient.contiguous() for gradient in gradients)
    (tokens, q_heads, dim), k_heads = dq.shape, dk.shape[1]
    group = _group(q_heads, k_heads)
    q_weight, k_weight = norms or (qkv, qkv)
    _rope_backward[(tokens, (q_heads + 2 * k_heads) // group)](
        qkv, q_weight, k_weight, cos, sin, dq, dk, dv, out, qkv.stride(0), out.stride(0), cos.shape[0], eps,
        Q_HEADS=q_heads, K_HEADS=k_heads, DIM=dim, GROUP=group, NORM=norms is not None, num_warps=4,
    )  # fmt: skip


def _group(q_heads: int, k_heads: int) -> int:
    """Heads of one program, so that no program has heads of two kinds."""
    return next(size for size in (8, 4, 2, 1) if q_heads % size == 0 and k_heads % size == 0)
