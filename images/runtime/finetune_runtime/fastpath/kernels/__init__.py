"""Triton kernels of the fast path. Each computes in float32 what it reads and writes in the tensors' own dtype. The mathematics stands in `ops/`."""
