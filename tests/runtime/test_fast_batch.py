"""What is computed of a batch while it is collated, and that rows do not see each other."""

from typing import Any

import pytest
import torch

from finetune_runtime.contract.fast_path import FastPlan
from finetune_runtime.fastpath.batch import Shapes, first, prepare, shapes
from tests.runtime.fast_models import error, fast, make, plain, rows

IDS = torch.tensor([[11, 12, 13, 14], [21, 22, 0, 0]])
LABELS = torch.tensor([[-100, 12, 13, 14], [-100, 22, -100, -100]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def made(batch: dict[str, Any], graphs: Shapes | None = None) -> dict[str, Any]:
    found = prepare(batch, graphs, None)
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in found.items()}


def test_padding_goes_and_every_token_has_the_next_one_as_its_label() -> None:
    found = made({"input_ids": IDS, "labels": LABELS, "attention_mask": MASK})
    assert (found["ids"], found["positions"], found["bounds"], found["longest"]) == ([11, 12, 13, 14, 21, 22], [0, 1, 2, 3, 0, 1], [0, 4, 6], 4)
    assert (found["trained"], found["labels"], found["scale"]) == ([0, 1, 2, 4], [12, 13, 14, 22], [0.25])


def test_padding_at_the_left_goes_too() -> None:
    flipped = {"input_ids": IDS.flip(1), "labels": LABELS.flip(1), "attention_mask": MASK.flip(1)}
    found = made(flipped)
    assert (found["ids"], found["positions"], found["bounds"]) == ([14, 13, 12, 11, 22, 21], [0, 1, 2, 3, 0, 1], [0, 4, 6])
    assert found["labels"] == [13, 12]  # of rows read backwards: the last token is the one that is not trained


def test_full_rows_share_their_positions() -> None:
    found = made({"input_ids": IDS[:, :2], "labels": LABELS[:, :2], "attention_mask": MASK[:, :2]})
    assert (found["rows"], found["positions"], "bounds" in found) == (2, [0, 1], False)


def test_rows_that_are_packed_already_end_where_positions_begin_again() -> None:
    packed = {"input_ids": torch.tensor([[11, 12, 13, 14, 21, 22]]), "labels": torch.tensor([[-100, 12, 13, 14, 21, 22]])}
    found = made(packed | {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1]])})
    assert (found["bounds"], found["trained"], found["labels"]) == ([0, 4, 6], [0, 1, 2, 4], [12, 13, 14, 22])


def test_the_first_tokens_of_a_batch_are_what_it_is_with_the_others_untrained() -> None:
    batch = {"input_ids": IDS, "labels": LABELS, "attention_mask": MASK}
    wanted = made(batch | {"labels": torch.stack([LABELS[0], torch.full_like(LABELS[1], -100)])})
    found = first(prepare(batch, None, None), 3)
    assert {name: found[name].tolist() for name in ("trained", "labels", "scale")} == {name: wanted[name] for name in ("trained", "labels", "scale")}


def plan(**values: int) -> FastPlan:
    return FastPlan.model_validate({"micro_batch": 2, "accumulation": 1, "keep": [2], "row_tokens": 1000, "predicted_bytes": 0, "budget_bytes": 0} | values)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        pytest.param({"graph_tokens": 8192, "max_graphs": 4}, Shapes(2048, 512, 1000), id="four"),
        pytest.param({"graph_tokens": 8192, "max_graphs": 1}, Shapes(2048, 2048, 1000), id="one"),
        pytest.param({"graph_tokens": 1024, "max_graphs": 3}, Shapes(1024, 512, 1000), id="for small micro-batches"),
        pytest.param({"graph_tokens": 0, "max_graphs": 4}, None, id="none"),
    ],
)
def test_a_plan_has_as_many_shapes_as_graphs(values: dict[str, int], wanted: Shapes | None) -> None:
    found = shapes(plan(**values))
    assert found == wanted
    assert found is None or -(-found.most // found.bucket) <= values["max_graphs"]


def test_shapes_for_graphs_are_few() -> None:
    graphs = Shapes(512, 256, 8)
    for rows_of_it in (2, 1):
        part = {"input_ids": IDS[:rows_of_it], "labels": LABELS[:rows_of_it], "attention_mask": MASK[:rows_of_it]}
        found = made(part, graphs)
        assert (len(found["ids"]), len(found["labels"]), len(found["positions"]), len(found["bounds"])) == (256, 256, 256, 8)
        assert (found["bounds"][-1], found["graph"], found["longest"]) == (256, True, 256)
        assert sum(label >= 0 for label in found["labels"]) == (4 if rows_of_it == 2 else 3)
    full = made({"input_ids": IDS.repeat(1, 64), "labels": LABELS.repeat(1, 64)}, graphs)
    assert (full["rows"], "bounds" in full, full["graph"]) == (2, False, True)
    assert not made({"input_ids": IDS, "labels": LABELS, "attention_mask": MASK}, Shapes(5, 5, 5))["graph"]


def test_rows_of_the_embedding_are_looked_up_on_the_cpu() -> None:
    table = torch.arange(60).view(30, 2).float()
    found = prepare({"input_ids": IDS[:1], "labels": LABELS[:1]}, None, table)
    assert "ids" not in found
    assert found["embedded"].tolist() == [[22, 23], [24, 25], [26, 27], [28, 29]]


@pytest.mark.parametrize("lengths", [[20, 33], [64, 1]])
def test_packed_rows_train_as_rows_of_their_own(lengths: list[int]) -> None:
    model = make("llama3")
    wanted = plain(model, rows(lengths))
    padded = rows(lengths)
    real = padded["attention_mask"].bool()
    packed = {"input_ids": padded["input_ids"][real][None], "labels": padded["labels"][real][None]}
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    found = fast(model, packed)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert max(error(found.gradients, wanted.gradients)) < 2e-5
