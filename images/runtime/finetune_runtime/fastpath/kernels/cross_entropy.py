"""Cross entropy in Triton: one program per token reads its logits twice, first for the sum, then to put their gradient in their place."""

import torch
import triton
import triton.language as tl

from finetune_runtime.fastpath.backend import power_of_two


@triton.jit
def _cross_entropy(logits_ptr, label_ptr, loss_ptr, scale_ptr, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + row)
    trained = label >= 0
    logits_ptr += row * stride
    largest = float("-inf")
    total = 0.0
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + column, mask=column < WIDTH, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), 0)
        largest = new
    log_sum = largest + tl.log(total)
    wanted = tl.load(logits_ptr + tl.maximum(label, 0)).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(trained, log_sum - wanted, 0.0))
    scale = tl.where(trained, tl.load(scale_ptr), 0.0)
    tl.debug_barrier()  # `wanted` is read by all warps before any overwrites it
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + column, mask=column < WIDTH, other=float("-inf")).to(tl.float32)
        grad = (tl.exp(x - log_sum) - tl.where(column == label, 1.0, 0.0)) * scale
        tl.store(logits_ptr + column, grad.to(logits_ptr.dtype.element_ty), mask=column < WIDTH)


def loss_and_gradient_(logits: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, loss: torch.Tensor) -> None:
    """See ops.cross_entropy.loss_and_gradient_; writes `loss`."""
    rows, width = logits.shape
    _cross_entropy[(rows,)](logits, labels, loss, scale, logits.stride(0), WIDTH=width, BLOCK=min(8192, power_of_two(width)), num_warps=16)
