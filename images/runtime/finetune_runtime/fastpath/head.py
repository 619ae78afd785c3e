"""The end of the model: final norm, output head and mean cross entropy over the trained tokens.

Logits of `chunk` tokens exist at once. The head is frozen, so as soon as the gradient of a chunk's logits is there it goes back through the head:

    dL/dn = dlogits W        for logits = n W^T, n = norm(h)

and the logits are gone before the next chunk. What reaches us from outside is one number g = dL/dloss, which is multiplied in the norm's backward pass.
"""

from dataclasses import dataclass

import torch

from .ops import cross_entropy, rmsnorm
from .wide import Wide


@dataclass(frozen=True)
class KeptHead:
    """trained: rows of h that were selected, or None for all; h, grad [N, H]; rstd [N]; tokens: T."""

    trained: torch.Tensor | None
    h: torch.Tensor
    rstd: torch.Tensor
    grad: torch.Tensor
    tokens: int


@dataclass(frozen=True)
class Head:
    """norm [H], weight [V, H]: frozen. rank: of the last layer's adapter, see Wide."""

    norm: torch.Tensor
    eps: float
    weight: torch.Tensor
    chunk: int
    rank: int

    def forward(self, h: torch.Tensor, trained: torch.Tensor | None, labels: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, KeptHead]:
        """The mean loss, float32 [], of h [T, H].

        trained: int64 [N], which tokens, or None for all; labels: int64 [N], below 0: not trained; scale: float32 [1], 1 / trained tokens.
        """
        selected = h if trained is None else h.index_select(0, trained)
        normed, rstd = rmsnorm.forward(selected, self.norm, self.eps)
        grad = torch.empty_like(selected)
        losses = torch.empty(selected.shape[0], dtype=torch.float32, device=h.device)
        for start in range(0, selected.shape[0], self.chunk):
            part = slice(start, start + self.chunk)
            logits = torch.mm(normed[part], self.weight.t())
            cross_entropy.loss_and_gradient_(logits, labels[part], scale, losses[part])
            torch.mm(logits, self.weight, out=grad[part])
        return losses.sum() * scale[0], KeptHead(trained, selected, rstd, grad, h.shape[0])

    def evaluate(self, h: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss, float32 [], and for each trained token whether the likeliest token is its label, bool [N]. batch: trained, labels, scale."""
        trained, labels, scale = batch
        normed = rmsnorm.forward(h.index_select(0, trained), self.norm, self.eps)[0]
        losses = torch.empty(normed.shape[0], dtype=torch.float32, device=h.device)
        right = torch.empty_like(losses, dtype=torch.bool)
        for start in range(0, normed.shape[0], self.chunk):
            part = slice(start, start + self.chunk)
            logits = torch.mm(normed[part], self.weight.t())
            right[part] = logits.argmax(-1) == labels[part]
            cross_entropy.loss_and_gradient_(logits, labels[part], scale, losses[part])
        return losses.sum() * scale[0], right

    def backward(self, kept: KeptHead, scale: torch.Tensor) -> Wide:
        """Gradient of h, times scale [1] float32."""
        result = Wide(kept.tokens, kept.h.shape[1], self.rank, kept.h)
        if kept.trained is None:
            rmsnorm.backward(kept.grad, kept.h, self.norm, kept.rstd, out=result.left, scale=scale)
            return result
        part = rmsnorm.backward(kept.grad, kept.h, self.norm, kept.rstd, out=torch.empty_like(kept.h), scale=scale)
        result.left.zero_()
        result.left.index_copy_(0, kept.trained, part)
        return result
