"""Kernels by what they do, told by their names: cuBLAS', cuDNN's, bitsandbytes', Liger's, torch's and ours."""

from collections.abc import Iterable

# The first kind of which a word is in the name.
KINDS = (
    ("attention", ("flash", "fmha", "cudnn_generated", "sdpa", "attention")),
    ("dequantise", ("dequant", "nf4", "int8")),
    ("dropout", ("dropout", "_drop", "distribution")),
    ("loss", ("cross_entropy", "_ce", "nll", "softmax", "element_mul")),
    ("norms", ("rms",)),
    ("rope", ("rope", "_qk", "rotary")),
    ("swiglu", ("glu", "silu")),
    ("communication", ("nccl",)),
    ("products", ("gemm", "nvjet", "cutlass", "splitk", "cublas", "xmma")),
    ("optimizer", ("adam", "multi_tensor", "koptimizer", "lpnorm")),
    ("copies", ("copy", "memcpy", "memset", "catarray", "convert")),
    ("elementwise", ("elementwise", "vectorized", "unrolled", "triton_", "reduce")),
)


def kind(name: str) -> str:
    lowered = name.lower()
    return next((found for found, words in KINDS if any(word in lowered for word in words)), "other")


def by_kind(rows: Iterable[tuple[str, int, float]]) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches of each kind, the longest first. Rows: name, launches, milliseconds."""
    sums: dict[str, tuple[float, int]] = {}
    for name, count, milliseconds in rows:
        time, launches = sums.get(kind(name), (0.0, 0))
        sums[kind(name)] = (time + milliseconds, launches + count)
    return {name: (round(time, 1), launches) for name, (time, launches) in sorted(sums.items(), key=lambda item: -item[1][0])}
