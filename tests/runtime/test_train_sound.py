"""What is committed is sound: no weights that are no numbers, and no evaluation loss of other weights."""

import json
import os
from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepResult
from finetune_runtime.s3.store import Store
from finetune_runtime.train.divergence import WEIGHTS
from finetune_runtime.train.events import EVENTS_FD, STAGING, Event, Kind
from tests.runtime.support import CommitRows, MakeConfig, Pods, metrics, opening_hours, steps


@pytest.mark.parametrize(
    ("training", "what"),
    [
        pytest.param({"loggingSteps": 50}, "loss became nan", id="between two logs"),
        pytest.param({"epochs": 1, "effectiveBatchSize": 40}, "evaluation loss became nan", id="by the very last step, whose own loss is still fine"),
    ],
)
def test_a_loss_that_is_no_number_is_never_committed(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store, training: dict[str, Any], what: str
) -> None:
    config = job_config(training={"learningRate": "1e30", **training})
    commit_dataset(config)
    result = pods.start(config).end(Exit.CRASH)
    assert (result.reason, what in result.message, "lower training.learningRate" in result.message) == (Reason.TRAINING_CRASHED, True, True), result.message
    assert steps(store, config) == []


@pytest.mark.parametrize("weight", [pytest.param(1.0, id="a number"), pytest.param(nan, id="none")])
def test_only_weights_that_are_numbers_are_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    from finetune_runtime.train.plugin.finetune_callback import FinetuneCallback

    reader, writer = os.pipe()
    monkeypatch.setenv(EVENTS_FD, str(writer))
    monkeypatch.setenv(STAGING, str(tmp_path / "staged"))
    (tmp_path / "output/checkpoint-5").mkdir(parents=True)
    model = torch.nn.Linear(2, 2)
    model.weight.data[1, 1] = weight
    args = SimpleNamespace(output_dir=str(tmp_path / "output"))
    state = SimpleNamespace(is_world_process_zero=True, global_step=5, max_steps=20, epoch=0.5)
    callback = FinetuneCallback(args, SimpleNamespace(model=model))
    callback.on_save(args, state, None)
    event = Event.parse(os.read(reader, 4096).decode())
    os.close(reader)
    if isnan(weight):
        assert (event.kind, list(event.values), list(tmp_path.glob("staged/*"))) == (Kind.LOG, [WEIGHTS], [])
    else:
        assert (event.kind, event.path) == (Kind.SAVED, str(tmp_path / "staged/checkpoint-5"))


@pytest.fixture
def cut(pods: Pods, job_config: MakeConfig, commit_rows: CommitRows, store: Store) -> JobConfig:
    """A job of two steps whose pod got SIGTERM in its last evaluation and could not wait for its end."""
    training = {"epochs": 1, "effectiveBatchSize": 20, "microBatchSize": 1, "maxLength": 4096, "evalSteps": 1}
    config = job_config(training=training, checkpoints={"everySteps": 4, "use": "Best"})
    commit_rows(config, val=[opening_hours(800)] * 20)
    terminate(pods, config, Exit.INTERRUPTED, "'global_step/max_steps': '2/2'")
    assert evaluated(store, config) == [1], "the case needs an evaluation that takes longer than the patience"
    assert steps(store, config)[0] == 2
    return config


def terminate(pods: Pods, config: JobConfig, code: int, words: str) -> StepResult:
    pod = pods.start(config, FINETUNE_EVALUATION_PATIENCE="1")
    pod.wait_for(words)
    pod.process.terminate()
    return pod.end(code)


def evaluated(store: Store, config: JobConfig) -> list[int]:
    return [record["step"] for record in metrics(store, config) if "evalLoss" in record]


def adapter_of(store: Store, result: StepResult) -> Manifest:
    assert result.train is not None
    assert result.train.adapter is not None
    found = artefacts.load(store, result.train.adapter.uri)
    assert found is not None
    return found


def test_the_next_pod_makes_the_evaluation_that_sigterm_cut_and_no_step_more(pods: Pods, cut: JobConfig, store: Store) -> None:
    result = pods.start(cut).end(Exit.DONE)
    losses = {record["step"]: record["evalLoss"] for record in metrics(store, cut) if "evalLoss" in record}
    adapter = adapter_of(store, result)
    assert sorted(losses) == [1, 2]
    assert (adapter.step, adapter.eval_loss) == (2, losses[2]), "the best one is the last one, which it became only now"
    assert [record["step"] for record in metrics(store, cut) if "loss" in record] == [1, 2]
    assert result.train is not None
    assert (result.train.step, result.train.resumed_from) == (2, 2)
    assert len(json.loads(store.read(f"{cut.prefix}/report/answers.json"))["answers"]) > 0


@pytest.mark.long
def test_where_it_is_cut_twice_the_adapter_has_no_loss_rather_than_that_of_another_step(pods: Pods, cut: JobConfig, store: Store) -> None:
    result = terminate(pods, cut, Exit.DONE, "use_logits_to_keep: ")  # an evaluation begins
    adapter = adapter_of(store, result)
    assert evaluated(store, cut) == [1]
    assert (adapter.step, adapter.eval_loss, "evalLoss" in adapter.details) == (2, None, False)
