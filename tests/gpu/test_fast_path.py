"""The fast path with its kernels on a GPU, on tiny models of every shape: no further from float32 than plain torch, and the same at every level, in graphs, in parts.

python3 -m pytest tests/gpu/test_fast_path.py        or        PYTHONPATH=images/runtime:. python3 tests/gpu/test_fast_path.py
"""

import sys
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from finetune_runtime.fastpath import batch as batches
from finetune_runtime.fastpath import layer
from finetune_runtime.fastpath.graphs import Graphs
from tests.runtime.fast_models import SHAPES, WORD, Result, error, fast, fast_model, fix_dropout, gradients, make, plain, rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FULL, RAGGED = [64, 64, 64], [37, 64, 5, 50]


def pair(shape: str, bits: int) -> tuple[Any, Any]:
    """A model in bfloat16, and the same numbers in float32."""
    half, exact = make(shape, torch.bfloat16, bits=bits, device="cuda"), make(shape, as_if=bits, device="cuda")
    with torch.no_grad():
        for mine, theirs in zip(exact.parameters(), half.parameters(), strict=True):
            if mine.shape == theirs.shape:
                mine.copy_(theirs.float())
    return half, exact


def in_graphs(model: Any, batch: dict[str, torch.Tensor], times: int, **plan: Any) -> tuple[Result, int]:
    """As fast_models.fast, by Graphs; also how many were captured."""
    made = fast_model(model, **plan)
    graphs = Graphs(made, 2)
    made.adapters.begin_step()
    prepared = batches.prepare(batch, batches.Shapes(512, 256, 64), None)
    prepared = {name: value.cuda() if torch.is_tensor(value) else value for name, value in prepared.items()}
    for _ in range(times):
        made.word.fill_(WORD)
        loss, left = graphs.forward(prepared)
        graphs.backward(left, torch.tensor([0.5], device="cuda"))
    result = Result(loss.item(), gradients(model))
    captured = graphs.count
    graphs.clear()
    made.adapters.release()
    return result, captured


@pytest.mark.parametrize("lengths", [pytest.param(FULL, id="full rows"), pytest.param(RAGGED, id="padded rows")])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_no_further_from_32_bits_than_plain_torch_is(shape: str, bits: int, lengths: list[int]) -> None:
    half, exact = pair(shape, bits)
    wanted = plain(exact, rows(lengths))
    usual, found = plain(half, rows(lengths), autocast=True), fast(half, rows(lengths))
    assert error(found.gradients, wanted.gradients)[0] < 1.1 * error(usual.gradients, wanted.gradients)[0]
    assert abs(found.loss - wanted.loss) < abs(usual.loss - wanted.loss) + 2e-3


@pytest.mark.parametrize("lora", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [[0], [1], [0, 1, 2]])
def test_what_is_kept_changes_nothing(keep: list[int], lora: torch.dtype) -> None:
    model = make("qwen3", torch.bfloat16, bits=4, lora=lora, device="cuda", dropout=0.1)
    wanted, found = fast(model, rows(RAGGED)), fast(model, rows(RAGGED), keep=keep)
    assert found.loss == wanted.loss
    assert error(found.gradients, wanted.gradients)[0] < 5e-3


def test_dropout_passes_gradients_where_values_passed() -> None:
    model = make("llama3", torch.float32, device="cuda", dropout=0.2)
    found = fast(model, rows(FULL))
    fix_dropout(model, 0.2)
    wanted = plain(model, rows(FULL))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert error(found.gradients, wanted.gradients)[0] < 2e-3  # products in TF32 or not


@pytest.mark.parametrize("keep", [[2], [0]])
@pytest.mark.parametrize("lengths", [pytest.param([256, 256], id="full rows"), pytest.param(RAGGED, id="padded rows")])
def test_a_graph_does_what_is_done_without(lengths: list[int], keep: list[int]) -> None:
    model = make("qwen2", torch.bfloat16, bits=4, device="cuda", dropout=0.1)
    wanted = fast(model, rows(lengths), scale=0.5, times=4, keep=keep)
    found, captured = in_graphs(model, rows(lengths), 4, keep=keep)
    assert captured == 1
    assert found.loss == pytest.approx(wanted.loss, abs=2e-3)
    assert error(found.gradients, wanted.gradients)[0] < 2e-2


def test_products_in_parts_are_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3", torch.bfloat16, bits=4, device="cuda")
    wanted = fast(model, rows(FULL))
    monkeypatch.setattr(layer, "PART", 64)
    found = fast(model, rows(FULL))
    assert error(found.gradients, wanted.gradients)[0] < 5e-3


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "--noconftest", "-p", "no:cacheprovider", *sys.argv[1:]]))
