"""The backward pass of one decoder layer. Frozen weights have no gradient, so per group (see layer.py) there are three:

    with y = x W^T + s (x A^T) B^T, dy = dL/dy [T, N], xa = s x A^T and dya = s dy B [T, r]:

    dL/dx = dy W + dya A = [dy | dya] [W; A]        one product, as forward
    dL/dB = dy^T xa
    dL/dA = dya^T x                                  with dropout d: x -> d(x), and d(dya A) is added to dy W by itself

and around them the residual connections: for out = h2 + MLP(h2), dL/dh2 = dL/dout + what comes through the MLP and its norm; likewise for the attention.
Gradients of the adapters are added to the flat buffer, by one product each.
"""

import torch

from .adapters import Matrices, accumulate
from .layer import DOWN, GATE_UP, OUT, QKV, DecoderLayer, Kept, KeptMlp, Pass, times
from .ops import rmsnorm, rope, swiglu
from .wide import Wide


class LayerBackward:
    """One layer's backward pass. It can be called again after memory ran out in it: gradients that are in the buffer already are not added twice."""

    def __init__(self, layer: DecoderLayer, gradients: Matrices) -> None:
        self._layer, self._gradients = layer, gradients
        self._done: set[tuple[str, int, int]] = set()

    def __call__(self, kept: Kept, grad: Wide, adapters: Matrices, run: Pass, *, first: bool) -> Wide | None:
        """Gradient of the layer's input for that of its output; None for the first layer, whose input is frozen. `kept` is used up, `grad.left` stays."""
        layer, rank = self._layer, self._layer.rank
        attention = kept.attention or layer.attend(kept.h, adapters, run)
        mlp = kept.mlp or layer.gate_up(attention.h2, adapters, run)
        kept.attention = kept.mlp = None
        d_both = self._mlp_inner(mlp, grad, adapters, run)

        # gate and up, their norm, the residual around the MLP
        dya = self._adapter_out(GATE_UP, d_both, adapters)
        self._add_b(GATE_UP, d_both.left, mlp.xa)
        d_normed = self._input(GATE_UP, d_both, dya, adapters, run)
        d_h2 = Wide(grad.left.shape[0], layer.hidden, rank, grad.left)
        normed = torch.empty_like(d_normed)
        rmsnorm.backward(d_normed, attention.h2, layer.norm2, mlp.rstd, out=d_h2.left, residual=grad.left, again=normed)
        self._add_a(GATE_UP, dya, normed, run)
        del mlp, d_both, d_normed, normed, dya

        # the attention's output projection, attention, norm and turn of queries and keys
        dya = self._adapter_out(OUT, d_h2, adapters)
        self._add_b(OUT, d_h2.left, attention.xa_out)
        self._add_a(OUT, dya, attention.o, run)
        d_o = self._input(OUT, d_h2, dya, adapters, run)
        q, k, v = layer.rotated(attention.qkv, run)
        gradients = run.attention.backward(d_o, q, k, v, attention.saved, run.rows)
        del d_o, q, k, v
        d_qkv = Wide(grad.left.shape[0], attention.qkv.shape[1], layer.room(QKV), grad.left)
        rope.backward(attention.qkv, layer.heads, layer.head_norms, run.cos, run.sin, layer.eps, gradients, d_qkv.left)
        del gradients

        # query, key and value, their norm, the residual around the attention
        dya = self._adapter_out(QKV, d_qkv, adapters)
        self._add_b(QKV, d_qkv.left, attention.xa)
        d_normed = None if first else self._input(QKV, d_qkv, dya, adapters, run)
        if d_normed is None:
            self._add_a(QKV, dya, layer.normed(kept.h, QKV)[1].left, run)
            return None
        d_h = Wide(grad.left.shape[0], layer.hidden, rank, grad.left)
        normed = torch.empty_like(d_normed)
        rmsnorm.backward(d_normed, kept.h, layer.norm, attention.rstd, out=d_h.left, residual=d_h2.left, again=normed)
        self._add_a(QKV, dya, normed, run)
        return d_h

    def _mlp_inner(self, mlp: KeptMlp, grad: Wide, adapters: Matrices, run: Pass) -> Wide:
        """Through the down projection and the gate: gradient of [gate | up], which takes its place in `mlp`."""
        dya = self._adapter_out(DOWN, grad, adapters)
        d_act = self._input(DOWN, grad, dya, adapters, run)
        swiglu.backward_(mlp.both.left, d_act)
        act = d_act  # which it holds now
        xa = self._layer.down_adapter(act, DOWN, adapters, run) if mlp.xa_down is None else mlp.xa_down
        self._add_b(DOWN, grad.left, xa)
        self._add_a(DOWN, dya, act, run)
        return mlp.both

    def _adapter_out(self, group: int, grad: Wide, adapters: Matrices) -> torch.Tensor:
        """dya = s dy B [T, members * r], written to the room beside dy."""
        layer, column = self._layer, 0
        for place, (member, b) in enumerate(zip(layer.groups[group], adapters.b[group], strict=True)):
            out = grad.right[:, place * layer.rank : (place + 1) * layer.rank]
            times(grad.left[:, column : column + member.outputs], b, layer.scaling, out)
            column += member.outputs
        return grad.right

    def _input(self, group: int, grad: Wide, dya: torch.Tensor, adapters: Matrices, run: Pass) -> torch.Tensor:
        """dL/dx [T, K]."""
        layer, dropout = self._layer, run.dropout
        result = layer.product_back(group, grad.buffer, adapters, run.workspace, with_adapter=not dropout.probability)
        return dropout.add_(result, torch.mm(dya, adapters.a[group]), layer.site(group)) if dropout.probability else result

    def _add_b(self, group: int, dy: torch.Tensor, xa: torch.Tensor) -> None:
        rank, column = self._layer.rank, 0
        for place, total in enumerate(self._gradients.b[group]):
            part = dy[:, column : column + total.shape[0]]
            self._add("b", group, place, total, part, xa[:, place * rank : (place + 1) * rank])
            column += total.shape[0]

    def _add_a(self, group: int, dya: torch.Tensor, x: torch.Tensor, run: Pass) -> None:
        self._add("a", group, 0, self._gradients.a[group], dya, run.dropout(x, self._layer.site(group)))

    def _add(self, kind: str, group: int, place: int, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        if (kind, group, place) not in self._done:
            accumulate(total, left.t(), right)
            self._done.add((kind, group, place))
