"""Which checkpoint a run goes on from."""

from typing import Any

import pytest

from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.train.resume import Candidate, candidates


def entry(step: int, *, config_hash: str = "ours", dataset: str = "rows", total: int = 100, **details: Any) -> tuple[int, str, Manifest]:
    manifest = Manifest(
        kind=Kind.CHECKPOINT,
        files=[],
        config_hash=config_hash,
        base_model="hf://a/b",
        dataset_sha256=dataset,
        step=step,
        total_steps=total,
        details=details,
    )
    return step, f"s3://bucket/n/j/u/checkpoints/checkpoint-{step}", manifest


@pytest.mark.parametrize(
    ("steps", "order", "case"),
    [
        ([], [], "a first attempt"),
        ([50], [50], "one checkpoint"),
        ([9, 100, 20], [100, 20, 9], "by number, not by name: the newest first, then what to try when it is damaged"),
    ],
)
def test_complete_checkpoints_are_tried_newest_first(steps: list[int], order: list[int], case: str) -> None:
    assert [candidate.step for candidate in candidates([entry(step) for step in steps], "ours", "rows")] == order, case


@pytest.mark.parametrize(
    ("other", "what"),
    [({"config_hash": "theirs"}, "another configuration"), ({"dataset": "other rows"}, "another dataset")],
)
@pytest.mark.parametrize("position", [10, 90])
def test_a_checkpoint_of_another_run_is_never_resumed_or_passed_over(other: dict[str, Any], what: str, position: int) -> None:
    with pytest.raises(StepError, match=what) as caught:
        candidates([entry(50), entry(position, **other)], "ours", "rows")
    assert (caught.value.code, caught.value.reason) == (Exit.INVALID_CONFIG, Reason.CHECKPOINT_MISMATCH)
    assert f"checkpoint-{position}" in caught.value.message


@pytest.mark.parametrize(
    ("step", "total", "final", "finished", "only_evaluated"),
    [
        pytest.param(99, 100, False, False, False, id="a step is left"),
        pytest.param(100, 100, True, True, False, id="the end"),
        pytest.param(100, 100, False, False, True, id="its evaluation was cut"),
        pytest.param(50, 0, False, False, False, id="nobody knows how many there are"),
    ],
)
def test_a_checkpoint_at_the_last_step_needs_no_training(step: int, total: int, final: bool, finished: bool, only_evaluated: bool) -> None:
    position, uri, manifest = entry(step, total=total)
    candidate = Candidate(position, uri, manifest.model_copy(update={"final": final}))
    assert (candidate.finished, candidate.only_evaluated) == (finished, only_evaluated)


def test_a_training_that_stopped_early_needs_no_more_training() -> None:
    step, uri, manifest = entry(60, total=100)
    assert Candidate(step, uri, manifest.model_copy(update={"final": True})).finished


def test_the_micro_batch_that_fitted_is_remembered() -> None:
    assert Candidate(*entry(5, microBatch=2)).micro_batch == 2
    assert Candidate(*entry(5)).micro_batch == 0
