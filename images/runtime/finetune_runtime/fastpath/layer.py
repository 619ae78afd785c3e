"""The forward pass of one decoder layer, in the five pieces that the backward pass does again where they were not kept.

With T tokens, hidden size H, inner size I, rank r, scaling s, and for each group of linear layers that share an input x (adapters.GROUPS) the weights W [N, K],
B [N, r] and the stacked A [members * r, K]:

    y = x W^T + s (x A^T) B^T = [x | s x A^T] [W | B]^T

so the adapter rides in the product of the frozen weight. [W | B] is written to the workspace: W from its 4 or 8 bits, B beside it (ops.block_diagonal).
With dropout, A gets dropout(x) instead of x.

Where few tokens share the cost of writing a weight, a wide product is made in parts of PART outputs: what is written is then still in the GPU's L2 cache (50 MB
on an H100) when it is read, and the same lines are written again before they ever went to memory.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from .adapters import GROUPS, Matrices
from .attention import Attention, Rows
from .frozen import FrozenLinear, Workspace
from .ops import block_diagonal, rmsnorm, rope, swiglu
from .ops.dropout import Dropout
from .wide import Wide

QKV, OUT, GATE_UP, DOWN = range(4)
PART = 4096  # with 4096 inputs 34 MB, and a whole wave of tiles of a product with 1024 tokens
FEW_TOKENS = 2048


@dataclass(frozen=True)
class Pass:
    """What all layers of one micro-batch share. cos, sin: [P, D], see ops.rope."""

    rows: Rows
    cos: torch.Tensor
    sin: torch.Tensor
    dropout: Dropout
    workspace: Workspace
    attention: Attention


@dataclass
class Kept:
    """What of a layer is kept for its backward pass: always its input h [T, H], the rest by the plan's level (contract.fast_path.KEEP_*)."""

    h: torch.Tensor
    attention: "KeptAttention | None" = None
    mlp: "KeptMlp | None" = None


@dataclass
class KeptAttention:
    """qkv [T, (HQ + 2 HK) D]; o [T, HQ D]; h2 [T, H] after the attention; rstd [T]; xa, xa_out: s x A^T of QKV and OUT; saved: the attention's own."""

    rstd: torch.Tensor
    xa: torch.Tensor
    qkv: torch.Tensor
    o: torch.Tensor
    saved: Any
    xa_out: torch.Tensor
    h2: torch.Tensor


@dataclass
class KeptMlp:
    """both: Wide, left = [gate | up] [T, 2 I]; rstd [T]; xa: s x A^T of the group GATE_UP; xa_down: of DOWN, where it is known already."""

    rstd: torch.Tensor
    xa: torch.Tensor
    both: Wide
    xa_down: torch.Tensor | None


class DecoderLayer:
    """Frozen parts of a layer and its sizes. Its adapters' matrices are given to every call."""

    def __init__(self, module: Any, index: int, rank: int, scaling: float) -> None:
        attention = module.self_attn
        linear = {name: getattr(attention if hasattr(attention, name) else module.mlp, name) for group in GROUPS for name in group}
        self.groups = [[FrozenLinear(linear[name].get_base_layer()) for name in group] for group in GROUPS]
        self.index, self.rank, self.scaling = index, rank, scaling
        self.norm, self.norm2 = module.input_layernorm.weight, module.post_attention_layernorm.weight
        self.eps = float(module.input_layernorm.variance_epsilon)
        self.head_norms: rope.Norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
        dim = attention.head_dim
        self.heads = (self.groups[QKV][0].outputs // dim, self.groups[QKV][1].outputs // dim, dim)
        self.hidden, self.inner = self.groups[QKV][0].inputs, self.groups[DOWN][0].inputs
        biases = [linear.bias for linear in self.groups[QKV]]
        self.bias = None if biases[0] is None else torch.cat([bias.to(self.norm.dtype) for bias in biases if bias is not None])

    # ---- sizes
    def room(self, group: int) -> int:
        """Columns that the adapters of a group add."""
        return self.rank * len(self.groups[group])

    def workspace_numbers(self) -> int:
        """Numbers of the largest weight with its adapters, either way."""
        return max(
            max(outputs * (inputs + extra), (outputs + extra) * inputs)
            for extra, outputs, inputs in (
                (self.room(group), sum(member.outputs for member in members), members[0].inputs) for group, members in enumerate(self.groups)
            )
        )

    # ---- products with the weights
    def product(self, group: int, x: torch.Tensor, adapters: Matrices, workspace: Workspace, out: torch.Tensor) -> torch.Tensor:
        """Writes x [W | B]^T (+ bias) to `out` [T, N], for x = [x | s x A^T] [T, K + members * r]."""
        members, inputs = self.groups[group], self.groups[group][0].inputs
        ends = list(accumulate(member.outputs for member in members))
        for part in _parts(ends[-1], x.shape[0]):
            matrix = workspace.matrix(part.stop - part.start, x.shape[1])
            for member, end in zip(members, ends, strict=True):
                low, high = max(part.start, end - member.outputs), min(part.stop, end)
                if low < high:
                    member.write(matrix[low - part.start : high - part.start, :inputs], row=low - end + member.outputs)
            block_diagonal.write(adapters.stacked_b[group], matrix[:, inputs:], part.start, ends)
            if group == QKV and self.bias is not None:
                torch.addmm(self.bias[part], x, matrix.t(), out=out[:, part])
            else:
                torch.mm(x, matrix.t(), out=out[:, part])
        return out

    def product_back(self, group: int, grad: torch.Tensor, adapters: Matrices, workspace: Workspace, *, with_adapter: bool) -> torch.Tensor:
        """[T, K]: grad [W; A] for grad = [dy | dya] [T, N + members * r], or dy W alone."""
        members = self.groups[group]
        inputs, outputs = members[0].inputs, sum(member.outputs for member in members)
        factor = grad if with_adapter else grad[:, :outputs]
        result = torch.empty(grad.shape[0], inputs, dtype=grad.dtype, device=grad.device)
        for part in _parts(inputs, grad.shape[0]):
            matrix = workspace.matrix(factor.shape[1], part.stop - part.start)
            row = 0
            for member in members:
                member.write(matrix[row : row + member.outputs], column=part.start)
                row += member.outputs
            if with_adapter:
                matrix[outputs:].copy_(adapters.a[group][:, part])
            torch.mm(factor, matrix, out=result[:, part])
        return result

    # ---- the pieces
    def normed(self, h: torch.Tensor, group: int) -> tuple[torch.Tensor, Wide]:
        """The norm in front of a group: rstd [T], and Wide with the normed h [T, H] at its left."""
        wide = Wide(h.shape[0], self.hidden, self.room(group), h)
        rstd = rmsnorm.forward(h, self.norm if group == QKV else self.norm2, self.eps, wide.left)[1]
        return rstd, wide

    def down_adapter(self, x: torch.Tensor, group: int, adapters: Matrices, run: Pass) -> torch.Tensor:
        """s dropout(x) A^T [T, members * r]."""
        return times(run.dropout(x, self.site(group)), adapters.a[group].t(), self.scaling)

    def site(self, group: int) -> int:
        """The dropout's site."""
        return self.index * len(GROUPS) + group

    def qkv(self, h: torch.Tensor, adapters: Matrices, run: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """rstd, xa, qkv."""
        rstd, x = self.normed(h, QKV)
        xa = self.down_adapter(x.left, QKV, adapters, run)
        x.right.copy_(xa)
        out = torch.empty(h.shape[0], sum(member.outputs for member in self.groups[QKV]), dtype=h.dtype, device=h.device)
        return rstd, xa, self.product(QKV, x.buffer, adapters, run.workspace, out)

    def rotated(self, qkv: torch.Tensor, run: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, HQ, D], k and v [T, HK, D]; v is a view of qkv."""
        q_heads, k_heads, dim = self.heads
        q, k = rope.forward(qkv, self.heads, self.head_norms, run.cos, run.sin, self.eps)
        return q, k, qkv[:, (q_heads + k_heads) * dim :].unflatten(1, (k_heads, dim))

    def attend(self, h: torch.Tensor, adapters: Matrices, run: Pass) -> KeptAttention:
        """From the layer's input to the hidden state h2 = h + attention."""
        rstd, xa, qkv = self.qkv(h, adapters, run)
        o, saved = run.attention.forward(*self.rotated(qkv, run), run.rows)
        xa_out = self.down_adapter(o, OUT, adapters, run)
        # o is kept, so it has no room beside it: a second product instead of a copy.
        weight = run.workspace.matrix(h.shape[1], o.shape[1])
        self.groups[OUT][0].write(weight)
        h2 = torch.addmm(h, o, weight.t())
        h2.addmm_(xa_out, adapters.b[OUT][0].t())
        return KeptAttention(rstd, xa, qkv, o, saved, xa_out, h2)

    def gate_up(self, h2: torch.Tensor, adapters: Matrices, run: Pass) -> KeptMlp:
        """From the hidden state after the attention to gate and up."""
        rstd, x = self.normed(h2, GATE_UP)
        xa = self.down_adapter(x.left, GATE_UP, adapters, run)
        x.right.copy_(xa)
        both = Wide(h2.shape[0], 2 * self.inner, self.room(GATE_UP), h2)  # the gradient, which takes its place, uses the room
        self.product(GATE_UP, x.buffer, adapters, run.workspace, both.left)
        return KeptMlp(rstd, xa, both, None)

    def down(self, h2: torch.Tensor, mlp: KeptMlp, adapters: Matrices, run: Pass) -> torch.Tensor:
        """The layer's output h2 + MLP [T, H]; leaves xa_down in `mlp`."""
        act = Wide(h2.shape[0], self.inner, self.room(DOWN), h2)
        swiglu.forward(mlp.both.left, act.left)
        mlp.xa_down = self.down_adapter(act.left, DOWN, adapters, run)
        act.right.copy_(mlp.xa_down)
        weight = run.workspace.matrix(h2.shape[1], act.buffer.shape[1])
        self.groups[DOWN][0].write(weight[:, : self.inner])
        weight[:, self.inner :].copy_(adapters.b[DOWN][0])
        return torch.addmm(h2, act.buffer, weight.t())

    def forward(self, h: torch.Tensor, keep: int, adapters: Matrices, run: Pass) -> tuple[torch.Tensor, Kept]:
        """The layer's output [T, H] for its input h [T, H], and what is kept at this level."""
        attention = self.attend(h, adapters, run)
        h2 = attention.h2
        kept = Kept(h, attention if keep >= 1 else None)
        del attention
        mlp = self.gate_up(h2, adapters, run)
        out = self.down(h2, mlp, adapters, run)
        if keep >= 2:
            kept.mlp = mlp
        return out, kept


def _parts(outputs: int, tokens: int) -> list[slice]:
    """The outputs of one product after another."""
    width = PART if tokens <= FEW_TOKENS and outputs >= 2 * PART else outputs
    return [slice(start, min(start + width, outputs)) for start in range(0, outputs, width)]


def times(left: torch.Tensor, right: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """scale * left @ right, to `out` if given, the scale inside the product."""
    result = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device=left.device) if out is None else out
    return torch.addmm(result, left, right, beta=0, alpha=scale, out=result)
