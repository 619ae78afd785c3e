"""A matrix with room to its right for the adapter's share, so that frozen weight and adapter are one product."""

import torch


class Wide:
    """buffer [T, width + extra] = [left | right]. left: [T, width]; right: [T, extra]."""

    def __init__(self, rows: int, width: int, extra: int, like: torch.Tensor) -> None:
        """Uninitialised, with the dtype and on the device of `like`."""
        self.buffer = torch.empty(rows, width + extra, dtype=like.dtype, device=like.device)
        self.left, self.right = self.buffer[:, :width], self.buffer[:, width:]
