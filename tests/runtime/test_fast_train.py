"""Whole trainings on the fast path, in plain torch on the CPU: they learn what those without it learn, and a resumed one what the unbroken one does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.s3.store import Store
from tests.runtime.support import COUNT, NO_ROOM, MakeConfig, Pods, metrics, tamper


def job(job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], number: int, *, dropout: str, **training: Any) -> JobConfig:
    uid = f"0b7c6c1e-0000-4000-8000-{number:012d}"
    config = job_config(job={"uid": uid}, tuning={"lora": {"dropout": dropout}}, training={"gradientCheckpointing": "Off", **training})
    commit_dataset(config)
    return config


def test_it_learns_what_a_training_without_it_learns(pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store) -> None:
    records = []
    for number, wanted in enumerate(("Off", "Required"), 1):
        config = job(job_config, commit_dataset, number, dropout="0", fastPath=wanted, microBatchSize=2, epochs=1, evalSteps=5)
        train = pods.start(config).end(Exit.DONE).train
        assert train is not None
        assert (train.fast_path is not None and train.fast_path.used) == (wanted == "Required")
        records.append(metrics(store, config))
    for name, bound in (("loss", 0.01), ("evalLoss", 0.005)):  # bfloat16's noise: two ways to round one sum
        usual, fast = ({record["step"]: record[name] for record in found if name in record} for found in records)
        assert len(usual) == (10 if name == "loss" else 2)
        assert fast == pytest.approx(usual, abs=bound)


def test_a_resumed_training_draws_the_dropout_of_the_unbroken_one(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store
) -> None:
    unbroken = job(job_config, commit_dataset, 1, dropout="0.2", fastPath="Required", microBatchSize=2)
    broken = job(job_config, commit_dataset, 2, dropout="0.2", fastPath="Required", microBatchSize=2)
    pods.start(unbroken).end(Exit.DONE)
    pod = pods.start(broken)
    pod.wait_for("'global_step/max_steps': '12/20'")  # in the middle of the second epoch
    pod.process.terminate()
    pod.end(Exit.INTERRUPTED)
    resumed = pods.start(broken).end(Exit.DONE).train
    assert resumed is not None
    assert resumed.resumed_from >= 12
    losses = [{record["step"]: record["loss"] for record in metrics(store, config) if "loss" in record} for config in (unbroken, broken)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_every_micro_batch_takes_the_fast_path_also_after_evaluations(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], tmp_path: Path
) -> None:
    config = job(job_config, commit_dataset, 1, dropout="0.2", fastPath="Required", microBatchSize=2, evalSteps=5)  # in an epoch, and at its end
    pod = pods.start(config, PYTHONPATH=tamper(tmp_path, COUNT))
    pod.end(Exit.DONE)
    assert pod.text().count("by hand") == 20 * 2


def test_memory_that_runs_out_while_it_is_put_in_place_is_out_of_memory(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], tmp_path: Path
) -> None:
    config = job(job_config, commit_dataset, 1, dropout="0", fastPath="Required")
    result = pods.start(config, PYTHONPATH=tamper(tmp_path, NO_ROOM), FINETUNE_ROOM=str(tmp_path / "room")).end(Exit.OUT_OF_MEMORY)  # a CPU has one plan
    assert result.reason == Reason.OUT_OF_MEMORY
