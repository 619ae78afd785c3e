"""The adapters' B of a group beside their weights in Triton: one launch for what are up to four copies."""

import torch
import triton
import triton.language as tl


@triton.jit
def _block_diagonal(
    b_ptr, out_ptr, rows, first, second, third, out_stride, RANK: tl.constexpr, RANKS: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    column = tl.arange(0, RANKS)[None, :]
    number = first + row
    member = (number >= second).to(tl.int32) + (number >= third).to(tl.int32)
    mine = (column // RANK) == member
    value = tl.load(b_ptr + number * RANK + column % RANK, mask=(row < rows) & mine, other=0.0)
    tl.store(out_ptr + row.to(tl.int64) * out_stride + column, value, mask=(row < rows) & (column < MEMBERS * RANK))


def write(b: torch.Tensor, out: torch.Tensor, first: int, ends: list[int]) -> None:
    """See ops.block_diagonal.write."""
    rank = b.shape[1]
    second, third = [*ends[:-1], b.shape[0], b.shape[0]][:2]
    _block_diagonal[(triton.cdiv(out.shape[0], 64),)](
        b, out, out.shape[0], first, second, third, out.stride(0),
        RANK=rank, RANKS=triton.next_power_of_2(len(ends) * rank), MEMBERS=len(ends), BLOCK=64, num_warps=4,
    )  # fmt: skip
