"""B of linear layers that share an input, as the columns beside their stacked weights: member i's B [N_i, r] in the columns [i r, (i + 1) r) of its own rows,
zeros elsewhere, so that each member's output gets its own adapter's share only.
"""

import torch

from finetune_runtime.fastpath.backend import use_kernels


def write(b: torch.Tensor, out: torch.Tensor, first: int, ends: list[int]) -> None:
    """Writes rows [first, first + rows) of the block-diagonal matrix to `out` [rows, members * r], which may be a slice.

    b: the members' B, stacked [N, r]; ends: the row behind each member's last one, of at most three.
    """
    if use_kernels(out):
        from finetune_runtime.fastpath.kernels import block_diagonal

        block_diagonal.write(b, out, first, ends)
        return
    rank, begin = b.shape[1], 0
    out.zero_()
    for place, end in enumerate(ends):
        low, high = max(begin, first), min(end, first + out.shape[0])
        if low < high:
            out[low - first : high - first, place * rank : (place + 1) * rank] = b[low:high]
        begin = end
