"""The fast path of a LoRA or QLoRA training: forward and backward pass of the whole model by hand, see docs/fast-path.md.

| room | what it holds |
|---|---|
| `ops/` | the pieces that are not matrix products, each with its mathematics and in plain torch: norm, rotary embedding, gate, dropout, loss, weights |
| `kernels/` | the same pieces as Triton kernels, for a GPU (or Triton's interpreter) |
| `backend.py` | which of the two a tensor takes |
| `frozen.py`, `adapters.py` | what a layer multiplies with: frozen weights, made 16 bits wide when needed; LoRA, its gradients, each in one flat buffer |
| `layer.py`, `backward.py` | one decoder layer forward and backward; `attention.py`, `head.py`: attention; final norm, head and loss |
| `batch.py` | what of a batch is computed on the CPU, so that the GPU never waits: rows without padding, positions, the next token |
| `model.py` | a micro-batch through all layers and back, and what happens when memory runs out |
| `graphs.py` | the same as CUDA graphs |
| `optimizer.py` | AdamW for bfloat16 adapters whose small updates are not lost |
| `support.py`, `install.py` | whether a live model can take this path; putting it into ms-swift's trainer and taking it out |

Nothing here decides anything: keep levels, graphs and dtypes come from a FastPlan.
"""
