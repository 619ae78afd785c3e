"""The evaluation loss is that of all tokens, however many rows are computed at a time and by however many processes."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from swift.metrics import MeanMetric
from torch.utils.data import BatchSampler, SequentialSampler

from finetune_runtime.contract.result import Exit
from finetune_runtime.s3.store import Store
from finetune_runtime.train.plugin.evaluation import weigh_by_tokens
from tests.runtime.support import CommitRows, MakeConfig, Pods, metrics, opening_hours

# Rows of answers of very different lengths; a row's tokens all have its loss.
LENGTHS = [1, 9, 2, 30, 3, 1, 17]
LOSSES = [8.0, 1.0, 4.0, 0.5, 2.0, 6.0, 0.25]


def batch(numbers: list[int]) -> dict[str, Any]:
    """Padded rows of these numbers, their answers behind two tokens of a prompt. The losses stand for what a model would find."""
    longest = max(LENGTHS[number] for number in numbers)
    labels = torch.tensor([[-100, -100, *[1] * LENGTHS[number], *[-100] * (longest - LENGTHS[number])] for number in numbers])
    return {"labels": labels, "losses": torch.tensor([LOSSES[number] for number in numbers])[:, None].expand(labels.shape)}


class Process:
    """A trainer of one of several processes, as far as it is asked. Its loss is the mean over a batch's tokens, as that of ms-swift is."""

    def __init__(self, rank: int) -> None:
        self.model, self.args = SimpleNamespace(training=False), SimpleNamespace(process_index=rank)
        self.accelerator = SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=False, remainder=-1))
        self.custom_metrics = {"eval": {"loss": MeanMetric(nan_value=None, device="cpu")}}

    def compute_loss(self, _model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        trained = inputs["labels"][:, 1:] != -100
        loss = inputs["losses"][:, 1:][trained].sum() / (trained.sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7])
def test_every_row_counts_once_by_its_tokens(rows: int) -> None:
    wanted = sum(loss * length for loss, length in zip(LOSSES[:rows], LENGTHS[:rows], strict=True)) / sum(LENGTHS[:rows])
    for processes, size in product((1, 2, 3, 8), (1, 2, 3, 8)):
        total, tokens = 0.0, 0
        for rank in range(processes):
            process = Process(rank)
            weigh_by_tokens(process)
            every = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
            batches = list(BatchSamplerShard(every, processes, rank) if processes > 1 else every)
            for number, chosen in enumerate(batches, 1):
                process.accelerator.gradient_state = SimpleNamespace(end_of_dataloader=number == len(batches), remainder=rows % (size * processes))
                process.compute_loss(process.model, batch(chosen), return_outputs=True, num_items_in_batch=torch.tensor(99))
            found = process.custom_metrics["eval"]["loss"]
            total, tokens = total + found.state, tokens + found.count
        assert tokens == sum(LENGTHS[:rows]), f"{processes} processes, {size} rows at a time"
        assert total / tokens == pytest.approx(wanted, rel=1e-6), f"{processes} processes, {size} rows at a time"


def test_a_training_step_is_left_alone() -> None:
    process = Process(0)
    weigh_by_tokens(process)
    process.model.training = True
    assert process.compute_loss(process.model, batch([0, 1]), num_items_in_batch=torch.tensor(100)).item() == pytest.approx(0.17)
    assert process.custom_metrics["eval"]["loss"].count == 0


def test_trainings_that_differ_in_nothing_else_have_one_evaluation_loss(pods: Pods, job_config: MakeConfig, commit_rows: CommitRows, store: Store) -> None:
    # What is learned is the long answers' text, so that the short ones' tokens are worse by far.
    short = [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": "Please ask at the desk."}]
    ways: list[dict[str, Any]] = [
        {"training": {"microBatchSize": 1}},
        {"training": {"microBatchSize": 2}, "gpus": 2},
        {"training": {"microBatchSize": 4, "fastPath": "Required"}},
    ]
    found = []
    for number, way in enumerate(ways):
        training = {"epochs": 1, "learningRate": "3e-3", "evalSteps": 10, "gradientCheckpointing": "Off", "fastPath": "Off", **way["training"]}
        config = job_config(
            job={"uid": f"0b7c6c1e-0000-4000-8000-{number:012d}"}, tuning={"lora": {"dropout": "0"}}, training=training, gpus=way.get("gpus", 1)
        )
        commit_rows(config, train=[opening_hours(12)] * 40, val=[short, opening_hours(40), short, short, short])
        pods.start(config).end(Exit.DONE)
        [loss] = [record["evalLoss"] for record in metrics(store, config) if "evalLoss" in record]
        found.append(loss)
    assert found == pytest.approx([found[0]] * len(found), abs=0.01), "bfloat16's noise, and nothing else"
