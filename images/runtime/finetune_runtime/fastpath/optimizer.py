"""AdamW for the adapters' flat buffer, with 8-bit state, and without losing updates of bfloat16 adapters.

A number of bfloat16 has 8 bits of precision: an update below 1/512 of it changes nothing when rounded to the nearest, however often it comes. Rounded up or
down by chance, with the probability that keeps the mean, it counts in full on average: 16 random bits are added to the lower half of the float32,
which is then cut off. The chance is a function of (seed, step, place), so that all GPUs and a resumed training round alike.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    p = (1 - lr wd) p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Kept of m and of sqrt(v), which has half of v's decades, are 8 bits of bitsandbytes' dynamic code for each number and the largest of each block of 256.
2.03 bytes for each number, one launch for all. Stands where the plan says adamw_8bit.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .adapters import Adapters
from .backend import use_kernels
from .ops.dropout import GOLDEN, mixed, word_of

BLOCK = 256
_CHANCE = 1 << 20  # in the place of a micro-batch's number: no mask of the dropout has this word


@dataclass
class State:
    """codes of m and sqrt(v): uint8 [size]; maxima: float32 [blocks]; steps so far."""

    mean: torch.Tensor
    root: torch.Tensor
    mean_max: torch.Tensor
    root_max: torch.Tensor
    steps: int = 0


class AdamW8bit(torch.optim.Optimizer):  # type: ignore[misc]  # torch is untyped
    """Takes the place of bitsandbytes' optimizer of this name. The parameters must be those of `adapters()`, with one learning rate and decay for all."""

    def __init__(self, groups: Iterable[dict[str, Any]], adapters: Callable[[], Adapters | None], seed: int) -> None:
        super().__init__(groups, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})
        self._adapters, self._seed = adapters, seed
        self._kept: State | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002  torch's signature
        """One update, or none where the gradients were dropped. Raises ValueError for parameters that are not the adapters'."""
        adapters = self._adapters()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if adapters is None or len(self.param_groups) != 1 or {id(p) for p in parameters} != {id(p) for p in adapters.parameters}:
            raise ValueError("this optimizer is for the adapters of the fast path only")
        if not adapters.is_open():
            return  # ms-swift takes gradients that are no numbers away, and torch leaves alone what has none: no decay, no step counted
        group, flat = self.param_groups[0], adapters.flat
        state = self._kept = self._kept or fresh(flat.numel(), flat.device)
        state.steps += 1
        beta1, beta2 = group["betas"]
        numbers = (
            1 - group["lr"] * group["weight_decay"],
            group["lr"] / (1 - beta1**state.steps),
            beta1,
            beta2,
            group["eps"],
            1 / math.sqrt(1 - beta2**state.steps),
        )
        step(flat, adapters.gradient, state, numbers, word_of(self._seed, state.steps, _CHANCE, 0))

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self._kept is None else {0: dict(vars(self._kept))}
        return {"state": kept, "param_groups": super().state_dict()["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for the state of another optimizer."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        if not state_dict["state"]:
            return
        found = state_dict["state"].get(0, {})
        if set(found) != {"mean", "root", "mean_max", "root_max", "steps"}:
            raise ValueError("the checkpoint's optimizer state is not that of the fast path's AdamW with 8 bits")
        device = self.param_groups[0]["params"][0].device
        self._kept = State(**{name: value.to(device) if torch.is_tensor(value) else int(value) for name, value in found.items()})


def step(flat: torch.Tensor, gradient: torch.Tensor, state: State, numbers: tuple[float, ...], word: int) -> None:
    """Updates flat [size] and the state. numbers: decay, rate, beta1, beta2, eps, 1 / sqrt(1 - beta2^t). word: of the chance, 32 bits."""
    tables = _tables(flat.device)
    if use_kernels(flat):
        from .kernels import adam8

        adam8.step(flat, gradient, (state.mean, state.root), (state.mean_max, state.root_max), tables, word, numbers, BLOCK)
        return
    decay, rate, beta1, beta2, eps, correction = numbers
    signed, unsigned, signed_middle, unsigned_middle = tables
    grad = gradient.float()
    mean = beta1 * _decoded(state.mean, signed, state.mean_max) + (1 - beta1) * grad
    root = torch.sqrt(beta2 * _decoded(state.root, unsigned, state.root_max).square() + (1 - beta2) * grad.square())
    updated = flat.float() * decay - rate * mean / (root * correction + eps)
    _encode(mean, signed_middle, state.mean, state.mean_max)
    _encode(root, unsigned_middle, state.root, state.root_max)
    flat.copy_(rounded(updated, word) if flat.dtype == torch.bfloat16 else updated)


def rounded(x: torch.Tensor, word: int) -> torch.Tensor:
    """x [size] float32 to bfloat16, up or down by chance."""
    place = torch.arange(x.numel(), dtype=torch.int64, device=x.device)
    chance = mixed((place * GOLDEN & 0xFFFFFFFF) ^ word) & 0xFFFF
    bits = (x.view(torch.int32).long() + chance) & ~0xFFFF
    return bits.to(torch.int32).view(torch.float32).bfloat16()


def fresh(size: int, device: torch.device) -> State:
    blocks = -(-size // BLOCK)
    signed, unsigned, *_ = _tables(device)
    zero_mean, zero_root = (int(table.abs().argmin()) for table in (signed, unsigned))
    codes = [torch.full((size,), zero, dtype=torch.uint8, device=device) for zero in (zero_mean, zero_root)]
    return State(codes[0], codes[1], *(torch.zeros(blocks, dtype=torch.float32, device=device) for _ in range(2)))


_made: dict[torch.device, tuple[torch.Tensor, ...]] = {}


def _tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    """bitsandbytes' dynamic codes, signed and unsigned, sorted float32 [256] each, and the middles between neighbours [255] each."""
    if device not in _made:
        from bitsandbytes.functional import create_dynamic_map

        codes = [create_dynamic_map(signed=signed).to(device, torch.float32).sort().values for signed in (True, False)]
        _made[device] = (*codes, *((code[1:] + code[:-1]) / 2 for code in codes))
    return _made[device]


def _decoded(codes: torch.Tensor, table: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    return table[codes.long()] * maxima.repeat_interleave(BLOCK)[: codes.numel()]


def _encode(x: torch.Tensor, middles: torch.Tensor, codes: torch.Tensor, maxima: torch.Tensor) -> None:
    blocks = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    maxima.copy_(blocks.abs().amax(1))
    scaled = blocks / torch.where(maxima > 0, maxima, 1.0)[:, None]
    codes.copy_(torch.bucketize(scaled, middles).view(-1)[: x.numel()])
