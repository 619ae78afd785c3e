"""AdamW with 8-bit state in Triton: one launch for all adapters, a program per few blocks. The arithmetic is that of optimizer.py."""

import torch
import triton
import triton.language as tl

from finetune_runtime.fastpath.kernels.dropout import _mixed

_BLOCKS = 4  # blocks of one program


@triton.jit
def _nearest(x, middle_ptr):
    """How many of the 255 sorted middles between neighbouring codes are below x."""
    code = tl.zeros_like(x).to(tl.int32)
    step = 128
    for _ in tl.static_range(8):
        candidate = code + step
        middle = tl.load(middle_ptr + candidate - 1)
        code = tl.where(x > middle, candidate, code)
        step = step // 2
    return code


@triton.jit(do_not_specialize=["word"])
def _adam8(
    p_ptr, grad_ptr, mean_ptr, root_ptr, mean_max_ptr, root_max_ptr, signed_ptr, unsigned_ptr, signed_middle_ptr, unsigned_middle_ptr, word,
    decay, rate, beta1, beta2, eps, root_correction, size, ROUND: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = (tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)).to(tl.int64)
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = place < size
    some = block * BLOCK < size
    p = tl.load(p_ptr + place, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(signed_ptr + tl.load(mean_ptr + place, mask=inside, other=0).to(tl.int32))
    root = tl.load(unsigned_ptr + tl.load(root_ptr + place, mask=inside, other=0).to(tl.int32))
    mean *= tl.load(mean_max_ptr + block, mask=some, other=0.0)[:, None]
    root *= tl.load(root_max_ptr + block, mask=some, other=0.0)[:, None]
    mean = beta1 * mean + (1 - beta1) * grad
    root = tl.sqrt(beta2 * root * root + (1 - beta2) * grad * grad)
    p = p * decay - rate * mean / (root * root_correction + eps)
    mean = tl.where(inside, mean, 0.0)
    root = tl.where(inside, root, 0.0)
    mean_max = tl.max(tl.abs(mean), 1)
    root_max = tl.max(root, 1)
    mean_code = _nearest(mean / tl.where(mean_max > 0, mean_max, 1.0)[:, None], signed_middle_ptr)
    root_code = _nearest(root / tl.where(root_max > 0, root_max, 1.0)[:, None], unsigned_middle_ptr)
    tl.store(mean_ptr + place, mean_code.to(tl.uint8), mask=inside)
    tl.store(root_ptr + place, root_code.to(tl.uint8), mask=inside)
    tl.store(mean_max_ptr + block, mean_max, mask=some)
    tl.store(root_max_ptr + block, root_max, mask=some)
    if ROUND:
        chance = _mixed((place.to(tl.uint32) * 0x9E3779B1) ^ word.to(tl.uint32)) & 0xFFFF
        bits = (p.to(tl.uint32, bitcast=True) + chance) & 0xFFFF0000
        p = bits.to(tl.float32, bitcast=True)
    tl.store(p_ptr + place, p.to(p_ptr.dtype.element_ty), mask=inside)


def step(
    p: torch.Tensor,
    grad: torch.Tensor,
    codes: tuple[torch.Tensor, torch.Tensor],
    maxima: tuple[torch.Tensor, torch.Tensor],
    tables: tuple[torch.Tensor, ...],
    word: int,
    numbers: tuple[float, ...],
    block: int,
) -> None:
    """See optimizer.step."""
    programs = triton.cdiv(triton.cdiv(p.numel(), block), _BLOCKS)
    signed_word = word - 2**32 if word >= 2**31 else word  # 32 bits for Triton either way
    rounds = p.dtype == torch.bfloat16
    _adam8[(programs,)](p, grad, *codes, *maxima, *tables, signed_word, *numbers, p.numel(), ROUND=rounds, BLOCK=block, BLOCKS=_BLOCKS, num_warps=4)
