"""Cross entropy of logits x with label y: loss = log(sum_i exp(x_i)) - x_y, and dL/dx_i = softmax(x)_i - [i = y].

The gradient takes the logits' place, so that only one of the two ever exists. It is multiplied by a scale before it is rounded to the logits' dtype.
"""

import torch

from finetune_runtime.fastpath.backend import use_kernels


def loss_and_gradient_(logits: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, loss: torch.Tensor) -> None:
    """Losses [T] float32, written to `loss`; `logits` [T, V] are overwritten with scale [1] float32 times the gradient.

    A label [T] int64 below 0 is a token that is not trained: loss and gradient are 0.
    """
    if use_kernels(logits):
        from finetune_runtime.fastpath.kernels import cross_entropy

        cross_entropy.loss_and_gradient_(logits, labels, scale, loss)
        return
    wide = logits if logits.dtype == torch.float64 else logits.float()
    trained, label = labels >= 0, labels.clamp(min=0)[:, None]
    log_sum = torch.logsumexp(wide, 1, keepdim=True)
    loss.copy_(torch.where(trained, (log_sum - wide.gather(1, label))[:, 0], 0.0))
    grad = torch.exp(wide - log_sum)
    grad.scatter_add_(1, label, torch.full_like(label, -1, dtype=grad.dtype))
    logits.copy_(grad * (scale * trained)[:, None])
