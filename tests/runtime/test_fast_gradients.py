"""Losses and gradients of the fast path against autograd on the same model, in plain torch on the CPU: for every shape and level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune_runtime.fastpath import layer
from finetune_runtime.fastpath.attention import Attention
from finetune_runtime.fastpath.batch import Shapes, prepare
from finetune_runtime.fastpath.graphs import Graphs
from finetune_runtime.fastpath.support import unsupported
from finetune_runtime.train.diagnosis import out_of_memory
from tests.runtime.fast_models import SHAPES, error, fast, fast_model, fix_dropout, make, plain, rows

RAGGED, FULL = [37, 64, 5, 50], [48, 48, 48]


@pytest.mark.parametrize("lengths", [pytest.param(FULL, id="full rows"), pytest.param(RAGGED, id="padded rows"), pytest.param([41], id="one row")])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_autograd(shape: str, lengths: list[int]) -> None:
    model = make(shape)
    assert unsupported(model) == ""
    wanted, found = plain(model, rows(lengths)), fast(model, rows(lengths))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert max(error(found.gradients, wanted.gradients)) < 2e-5


@pytest.mark.parametrize("keep", [pytest.param([0], id="nothing kept"), pytest.param([1], id="attention kept"), pytest.param([2, 1, 0], id="mixed")])
def test_what_is_kept_changes_nothing(keep: list[int]) -> None:
    model = make("qwen3")
    wanted, found = fast(model, rows(RAGGED)), fast(model, rows(RAGGED), keep=keep)
    assert found.loss == wanted.loss
    assert error(found.gradients, wanted.gradients)[0] < 1e-6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"scale": 0.125, "times": 3}, "sums over micro-batches, scaled by what comes from outside", id="accumulation"),
        pytest.param({"graphs": Shapes(512, 256, 64)}, "rows that only fill the shape up train nothing", id="shapes for graphs"),
        pytest.param({"loss_tokens": 7}, "the loss in uneven chunks", id="chunks"),
    ],
)
def test_ways_to_run_a_batch_agree(options: dict[str, Any], why: str) -> None:
    model = make("qwen2")
    wanted, found = plain(model, rows(RAGGED), scale=options.get("scale", 1.0) * options.get("times", 1)), fast(model, rows(RAGGED), **options)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6), why
    assert max(error(found.gradients, wanted.gradients)) < 2e-5, why


@pytest.mark.parametrize("bits", [4, 16])
def test_products_in_parts_are_the_products(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen2", bits=bits)
    wanted = fast(model, rows(RAGGED))
    monkeypatch.setattr(layer, "PART", 64)  # of 128, 384 and 192 outputs, across the bounds of query, key and value
    found = fast(model, rows(RAGGED))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert error(found.gradients, wanted.gradients)[0] < 1e-5


def test_dropout_passes_gradients_where_values_passed() -> None:
    model = make("qwen3", dropout=0.2)
    found = fast(model, rows(FULL), keep=[2, 0])
    fix_dropout(model, 0.2)
    wanted = plain(model, rows(FULL))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert max(error(found.gradients, wanted.gradients)) < 2e-5


@pytest.mark.parametrize("lora", [pytest.param(torch.float32, id="adapters of 32 bits"), pytest.param(torch.bfloat16, id="adapters of 16 bits")])
@pytest.mark.parametrize("bits", [4, 16])
def test_in_16_bits_it_is_no_further_from_32_than_plain_torch_is(bits: int, lora: torch.dtype) -> None:
    half, exact = make("qwen3", torch.bfloat16, bits=bits, lora=lora), make("qwen3", as_if=bits)
    with torch.no_grad():
        for (_, mine), (name, theirs) in zip(exact.named_parameters(), half.named_parameters(), strict=True):
            if mine.shape == theirs.shape:  # all but packed weights
                mine.copy_(theirs.float())
            assert mine.shape == theirs.shape or "base_layer" in name
    wanted = plain(exact, rows(RAGGED))
    usual, found = plain(half, rows(RAGGED), autocast=True), fast(half, rows(RAGGED))
    assert error(found.gradients, wanted.gradients)[0] < 1.1 * error(usual.gradients, wanted.gradients)[0]
    assert abs(found.loss - wanted.loss) < abs(usual.loss - wanted.loss) + 1e-3


def test_an_evaluation_finds_the_loss_and_the_tokens_that_the_model_itself_finds() -> None:
    model = make("llama3", dropout=0.3).eval()
    batch = rows(RAGGED)
    with torch.no_grad():
        wanted = model(**batch)
    made = fast_model(model, loss_tokens=7)
    loss, right = made.evaluate(prepare(batch, None, None))
    shown, labels = wanted.logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
    assert loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    assert torch.equal(right, (shown == labels)[labels >= 0])


class Exhausted(Attention):
    """Memory runs out at these calls of the backward pass, or of the forward pass."""

    def __init__(self, *, forward: tuple[int, ...] = (), backward: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.calls = {"forward": 0, "backward": 0}
        self.fails = {"forward": forward, "backward": backward}

    def count(self, kind: str) -> None:
        self.calls[kind] += 1
        if self.calls[kind] in self.fails[kind]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward(self, *args: Any) -> Any:
        self.count("forward")
        return super().forward(*args)

    def backward(self, *args: Any) -> Any:
        self.count("backward")
        return super().backward(*args)


@pytest.mark.parametrize(
    "attention",
    [
        pytest.param(lambda: Exhausted(forward=(2,)), id="forward"),
        pytest.param(lambda: Exhausted(backward=(2,)), id="in the middle of the backward pass"),
        pytest.param(lambda: Exhausted(forward=(3,), backward=(1, 2)), id="again and again"),
    ],
)
def test_when_memory_runs_out_less_is_kept_and_the_gradients_are_the_same(attention: Callable[[], Exhausted]) -> None:
    model = make("qwen3")
    wanted, found = fast(model, rows(RAGGED)), fast(model, rows(RAGGED), attention=attention())
    assert found.loss == wanted.loss
    assert error(found.gradients, wanted.gradients)[0] < 1e-6


def test_when_nothing_is_kept_any_more_the_error_goes_on_to_the_supervisor() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        fast(make("qwen3"), rows(RAGGED), attention=Exhausted(forward=tuple(range(1, 99))))


def test_a_graph_without_room_is_told_in_words_that_explain_no_later_crash(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(fast_model(make("qwen3")), 2)
    monkeypatch.setattr(graphs, "_capture", lambda _batch: Exhausted(forward=(1,)).forward())
    assert graphs._try_to_capture((), {}) is None
    lines = caplog.messages[0].splitlines()
    assert any("CUDA out of memory" in line for line in lines)
    assert not out_of_memory(lines)
