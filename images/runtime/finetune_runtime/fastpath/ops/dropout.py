"""Dropout in front of the adapters, from a generator that is a function of (word, site, place), so that the backward pass draws the forward pass's mask again,
and a resumed training that of the unbroken one, without anything being kept.

word: one number on the device, new for every micro-batch; site: which layer and which of its four inputs; place: row * width + column, modulo 2^32.
mix is the finalizer of MurmurHash3, a bijection of 32-bit words:

    key = mix(word + site * c),   bits = mix(place * c ^ key),   dropped where (bits >> 8) < p * 2^24,   c = 2^32 / golden ratio

Kept values are divided by 1 - p. The gradient passes where the value passed: dx = mask * dy / (1 - p).
"""

from dataclasses import dataclass

import torch

from finetune_runtime.fastpath.backend import use_kernels

GOLDEN = 0x9E3779B1
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """Dropout of one micro-batch. word: int64 [1] on the device, of which the lower 32 bits count."""

    probability: float
    word: torch.Tensor

    def __call__(self, x: torch.Tensor, site: int) -> torch.Tensor:
        """x [T, N] with dropout, as a new tensor; x itself when there is none."""
        return self._apply(x, torch.empty_like(x, memory_format=torch.contiguous_format), site, add=False) if self.probability else x

    def add_(self, y: torch.Tensor, x: torch.Tensor, site: int) -> torch.Tensor:
        """y [T, N] += dropout(x [T, N]) in place: the way back of the same site."""
        return self._apply(x, y, site, add=True) if self.probability else y.add_(x)

    def _apply(self, x: torch.Tensor, y: torch.Tensor, site: int, *, add: bool) -> torch.Tensor:
        threshold, factor = round(self.probability * 2**24), 1 / (1 - self.probability)
        if use_kernels(x):
            from finetune_runtime.fastpath.kernels import dropout

            dropout.apply(x, y, self.word, site, threshold, factor, add=add)
            return y
        wide = x if x.dtype == torch.float64 else x.float()
        dropped = torch.where(kept(self.word, site, x.shape[0], x.shape[1], threshold), wide * factor, 0.0)
        return y.copy_(y + dropped if add else dropped)


def word_of(seed: int, step: int, micro: int, rank: int) -> int:
    """A number for one micro-batch of one GPU: equal numbers on the same place of a training, whoever runs it."""
    word = 0
    for part in (seed, step, micro, rank):
        word = _mixed_number((word + part) * GOLDEN + 1 & _WORD)
    return word


def kept(word: torch.Tensor, site: int, rows: int, width: int, threshold: int) -> torch.Tensor:
    """The mask [rows, width] in plain torch, which has no unsigned arithmetic: 64 bits, cut to 32."""
    key = mixed((word + site * GOLDEN) & _WORD)
    place = torch.arange(rows * width, dtype=torch.int64, device=word.device) & _WORD
    return (mixed((place * GOLDEN & _WORD) ^ key) >> 8 >= threshold).view(rows, width)


def mixed(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _WORD
    return x ^ (x >> 16)


def _mixed_number(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _WORD
    return x ^ (x >> 16)
