"""Every Triton kernel of the fast path against the same piece in plain torch: on a GPU, or on a CPU in Triton's interpreter (TRITON_INTERPRET=1).

python3 -m pytest tests/gpu/test_fast_kernels.py        or        python3 tests/gpu/test_fast_kernels.py
"""

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from finetune_runtime.fastpath import backend, optimizer
from finetune_runtime.fastpath.ops import block_diagonal, cross_entropy, dequantize, dropout, rmsnorm, rope, swiglu

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU, or TRITON_INTERPRET=1")
DEVICE = "cuda" if GPU else "cpu"
BF16 = torch.bfloat16
TOKENS = 300 if GPU else 6


def both(work: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What kernels and plain torch make of it."""
    results = []
    for choice in ("kernels", "plain"):
        with backend.using(choice):
            result = work()
        results.append(result if isinstance(result, tuple) else (result,))
    return list(zip(*results, strict=True))


def agree(pairs: list[tuple[torch.Tensor, torch.Tensor]], bound: float) -> None:
    for found, wanted in pairs:
        if not GPU and found.dtype == BF16:
            bound = max(bound, 1e-2)  # the interpreter cuts where a GPU rounds
        error = (found.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < bound, f"relative error {error:.2e}"


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)


@pytest.mark.parametrize("width", [576, 4096 if GPU else 128])
@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 4e-3), (torch.float32, 1e-6)])
def test_norm(width: int, dtype: torch.dtype, bound: float) -> None:
    x, dy, residual = (normal(TOKENS, width, dtype=dtype, seed=seed) for seed in range(3))
    weight, scale = 1 + normal(width, dtype=dtype) / 10, torch.tensor([0.3], device=DEVICE)
    agree(both(lambda: rmsnorm.forward(x, weight, 1e-6)), bound)
    rstd = rmsnorm.forward(x, weight, 1e-6)[1]
    wide = torch.empty(TOKENS, width + 64, dtype=dtype, device=DEVICE)
    agree(both(lambda: rmsnorm.backward(dy, x, weight, rstd, out=wide[:, :width], residual=residual).clone()), bound)
    again = torch.empty_like(x)
    agree(both(lambda: (rmsnorm.backward(dy, x, weight, rstd, out=torch.empty_like(x), scale=scale, again=again), again.clone())), bound)


@pytest.mark.parametrize("heads", [pytest.param((8, 2, 128), id="groups"), pytest.param((9, 3, 64), id="odd"), pytest.param((14, 2, 16), id="small")])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 5e-3), (torch.float32, 1e-6)])
def test_rotary_embedding(heads: tuple[int, int, int], norm: bool, dtype: torch.dtype, bound: float) -> None:
    q_heads, k_heads, dim = heads
    qkv = normal(TOKENS, (q_heads + 2 * k_heads) * dim, dtype=dtype)
    angles = torch.outer(torch.arange(TOKENS // 2), 1e4 ** (-torch.arange(0, dim, 2) / dim)).repeat(1, 2).to(DEVICE)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = (1 + normal(dim, dtype=dtype) / 10, 1 - normal(dim, dtype=dtype) / 10) if norm else None
    agree(both(lambda: rope.forward(qkv, heads, norms, cos, sin, 1e-6)), bound)
    gradients = tuple(normal(TOKENS, count, dim, dtype=dtype, seed=count) for count in (q_heads, k_heads, k_heads))
    wide = torch.empty(TOKENS, qkv.shape[1] + 24, dtype=dtype, device=DEVICE)
    agree(both(lambda: rope.backward(qkv, heads, norms, cos, sin, 1e-6, gradients, wide[:, : qkv.shape[1]]).clone()), bound)


@pytest.mark.parametrize("width", [1536, 12288 if GPU else 192])
@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 6e-3), (torch.float32, 1e-6)])
def test_gate(width: int, dtype: torch.dtype, bound: float) -> None:
    wide, grad = normal(TOKENS, 2 * width + 16, dtype=dtype), normal(TOKENS, width, dtype=dtype)

    def backward() -> tuple[torch.Tensor, torch.Tensor]:
        gradient, act = wide.clone(), grad.clone()
        swiglu.backward_(gradient[:, : 2 * width], act)
        return gradient, act

    agree(both(lambda: swiglu.forward(wide[:, : 2 * width], torch.empty_like(grad))), bound)
    agree(both(backward), bound)


def test_dropout_draws_the_same_mask_everywhere() -> None:
    x, other = torch.ones(TOKENS, 1000, device=DEVICE, dtype=BF16), normal(TOKENS, 1000)
    drop = dropout.Dropout(0.1, torch.tensor([0xDEADBEEF], dtype=torch.int64, device=DEVICE))
    masked, added = both(lambda: (drop(x, 7), drop.add_(other.clone(), x, 7)))
    assert torch.equal(masked[0] != 0, masked[1] != 0)
    assert 0.08 < (masked[0] == 0).float().mean() < 0.12
    agree([masked, added], 3e-3)


@pytest.mark.parametrize("vocabulary", [1000, 151936 if GPU else 20000])
@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 3e-3), (torch.float32, 1e-5)])
def test_cross_entropy(vocabulary: int, dtype: torch.dtype, bound: float) -> None:
    logits = normal(TOKENS, vocabulary, dtype=dtype) * 3
    labels = torch.randint(0, vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels[1] = -100

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        gradient, loss = logits.clone(), torch.empty(TOKENS, device=DEVICE)
        cross_entropy.loss_and_gradient_(gradient, labels, torch.tensor([0.2], device=DEVICE), loss)
        return gradient, loss

    agree(both(work), bound)


def test_adapters_beside_the_weights() -> None:
    b = normal(700, 16)

    def work() -> tuple[torch.Tensor, ...]:
        outs = []
        for first, rows, ends in ((0, 700, [400, 550, 700]), (350, 260, [400, 550, 700]), (0, 700, [700]), (300, 400, [350, 700])):
            wide = torch.zeros(rows, 20 + 16 * len(ends), dtype=BF16, device=DEVICE)
            block_diagonal.write(b, wide[:, 4 : 4 + 16 * len(ends)], first, ends)
            outs.append(wide)
        return tuple(outs)

    for pair in both(work):
        assert torch.equal(*pair)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_weights_are_those_of_bitsandbytes_bit_for_bit(nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = normal(768, 512) / 50
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
    wide = torch.zeros(768, 576, dtype=BF16 if GPU else torch.float32, device=DEVICE)
    with backend.using("kernels"):
        dequantize.nf4(packed, state, wide[:, :512])
    assert torch.equal(wide[:, :512].to(BF16), functional.dequantize_4bit(packed, state))
    assert not wide[:, 512:].any()
    part = torch.empty(100, 128, dtype=wide.dtype, device=DEVICE)
    with backend.using("kernels"):
        dequantize.nf4(packed, state, part, row=77, column=192)
    assert torch.equal(part, wide[77:177, 192:320])


def test_int8_weights() -> None:
    values = torch.randint(-127, 128, (100, 900), dtype=torch.int8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    absmax = normal(100, dtype=torch.float32).abs() + 0.5

    def work() -> torch.Tensor:
        out = torch.empty(100, 700, dtype=BF16, device=DEVICE)
        dequantize.int8(values[:, :700], absmax, out)
        return out

    agree(both(work), 1e-3)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_optimizer(dtype: torch.dtype) -> None:
    size = 5000  # no whole number of blocks, nor of programs
    start, gradients = normal(size, dtype=dtype) / 50, [normal(size, dtype=dtype, seed=seed) / 100 for seed in range(3)]

    def work() -> tuple[torch.Tensor, ...]:
        flat, state = start.clone(), optimizer.fresh(size, torch.device(DEVICE))
        for number, gradient in enumerate(gradients, 1):
            numbers = (1 - 1e-4, 1e-3 / (1 - 0.9**number), 0.9, 0.999, 1e-8, (1 - 0.999**number) ** -0.5)
            optimizer.step(flat, gradient, state, numbers, word=0xDEADBEEF + number)
        return flat, state.mean_max, state.root_max, (state.mean.float() - 128), state.root.float()

    # A value in the middle between two codes may go either way, and then what follows from it.
    agree(both(work), 3e-3)


def test_kernels_are_what_a_gpu_takes() -> None:
    assert backend.use_kernels(SimpleNamespace(is_cuda=True))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", *sys.argv[1:]]))
