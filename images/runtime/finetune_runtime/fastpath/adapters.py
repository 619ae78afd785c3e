"""LoRA's matrices and their gradients, each in one flat buffer: one launch casts those of a layer, one all-reduce sums those of the model.

A layer has four inputs, and adapters that share an input are a group whose A are stacked:

    0: q, k, v   1: o   2: gate, up   3: down

The buffer's order, layer by layer: [Aq; Ak; Av], Ao, [Ag; Au], Ad, then Bq, Bk, Bv, Bo, Bg, Bu, Bd. The parameters of the model are views into it,
so everything else (optimizer, checkpoints) sees what it always sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass(frozen=True)
class Matrices:
    """A [members * r, K] of each group, and of each group's members B [N, r], also stacked: weights or gradients."""

    a: list[torch.Tensor]
    b: list[list[torch.Tensor]]
    stacked_b: list[torch.Tensor]


class Adapters:
    """The adapters of a model. modules: for each layer and group, PEFT's linear layers in GROUPS' order; name: the adapter's."""

    def __init__(self, modules: Sequence[Sequence[Sequence[Any]]], name: str, compute: torch.dtype) -> None:
        self._pairs = [
            [module.lora_A[name].weight for group in layer for module in group] + [module.lora_B[name].weight for group in layer for module in group]
            for layer in modules
        ]
        self._layout = [[len(group) for group in layer] for layer in modules]
        parameters = self.parameters
        self.dtype, self._compute, device = parameters[0].dtype, compute, parameters[0].device
        size = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.empty(size, dtype=self.dtype, device=device)
        self.gradient = torch.zeros(size, dtype=self.dtype, device=device)
        self._bounds: list[tuple[int, int]] = []
        self._views: list[torch.Tensor] = []
        start = 0
        for layer in self._pairs:
            first = start
            for parameter in layer:
                end = start + parameter.numel()
                view = self.flat[start:end].view(parameter.shape)
                view.copy_(parameter.data)
                parameter.data = view
                self._views.append(self.gradient[start:end].view(parameter.shape))
                start = end
            self._bounds.append((first, start))
        self.gradients = [self._matrices(index, self.gradient[slice(*bounds)]) for index, bounds in enumerate(self._bounds)]
        largest = max(end - begin for begin, end in self._bounds)
        self._cast = None if self.dtype == compute else torch.empty(largest, dtype=compute, device=device)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """In the order of the flat buffers."""
        return [parameter for layer in self._pairs for parameter in layer]

    def weights(self, layer: int) -> Matrices:
        """A layer's matrices in the dtype that is computed in. They are gone when those of another layer are asked for."""
        begin, end = self._bounds[layer]
        flat = self.flat[begin:end]
        if self._cast is not None:
            flat = self._cast[: end - begin].copy_(flat)
        return self._matrices(layer, flat)

    def is_open(self) -> bool:
        """Whether the trainer has gradients of ours, so whether this step has had micro-batches already."""
        shown = self._pairs[0][0].grad
        return shown is not None and shown.data_ptr() == self._views[0].data_ptr()

    def begin_step(self) -> None:
        """Clears gradients when the trainer has dropped them, and shows them to it again."""
        parameters = self.parameters
        if self.is_open():
            return
        self.gradient.zero_()
        for parameter, view in zip(parameters, self._views, strict=True):
            parameter.grad = view

    def release(self) -> None:
        """Gives every parameter a tensor of its own again, as before."""
        for parameter in self.parameters:
            parameter.data, parameter.grad = parameter.data.clone(), None

    def _matrices(self, layer: int, flat: torch.Tensor) -> Matrices:
        pairs, sizes = self._pairs[layer], self._layout[layer]
        a: list[torch.Tensor] = []
        start = first = 0
        for members in sizes:
            rows = sum(parameter.shape[0] for parameter in pairs[first : first + members])
            columns = pairs[first].shape[1]
            a.append(flat[start : start + rows * columns].view(rows, columns))
            start, first = start + rows * columns, first + members
        b: list[list[torch.Tensor]] = []
        stacked: list[torch.Tensor] = []
        for members in sizes:
            group, begin = [], start
            for parameter in pairs[first : first + members]:
                group.append(flat[start : start + parameter.numel()].view(parameter.shape))
                start += parameter.numel()
            first += members
            b.append(group)
            stacked.append(flat[begin:start].view(-1, group[0].shape[1]))
        return Matrices(a, b, stacked)


def accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total [N, M] += left [N, T] @ right [T, M], the sum over T and the addition in float32 also where the factors have 16 bits."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
