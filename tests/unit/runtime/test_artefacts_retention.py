"""Which checkpoints may be deleted, and which manifests mean the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.artefacts import same
from finetune_runtime.contract.artefact import FileEntry, Kind, Manifest, checkpoint_step
from finetune_runtime.train.checkpoints import best, stale


@pytest.mark.parametrize(
    ("present", "complete", "keep", "expected", "case"),
    [
        ([], [], 2, [], "nothing is there"),
        ([10], [], 2, [], "nothing is complete yet: one may be being written"),
        ([10, 20, 30], [10, 20, 30], 2, [10], "the two newest stay"),
        ([10, 20, 30], [30, 10, 20], 1, [10, 20], "the newest stays"),
        ([10, 20], [10, 20], 5, [], "fewer than may be kept"),
        ([10, 20, 30], [30], 2, [10, 20], "remains of killed uploads below the newest complete one go"),
        ([10, 20, 30], [10], 2, [], "incomplete ones above the newest complete one stay"),
        ([10, 20, 30, 40], [10, 20, 40], 2, [10, 30], "complete and incomplete ones mixed"),
        ([10, 20], [10, 20], 0, [10], "the newest complete one is never deleted"),
    ],
)
def test_which_checkpoints_go(present: list[int], complete: list[int], keep: int, expected: list[int], case: str) -> None:
    assert stale(present, dict.fromkeys(complete), keep) == expected, case


@pytest.mark.parametrize(
    ("losses", "expected", "case"),
    [
        ({}, None, "no checkpoint"),
        ({10: None, 20: None}, None, "no evaluation at any checkpoint"),
        ({10: 1.5, 20: 1.2, 30: 1.3}, 20, "the lowest loss"),
        ({10: 1.2, 20: None, 30: 1.2}, 10, "the earlier of equal ones"),
        ({10: math.nan, 20: math.inf, 30: 2.0}, 30, "what is no number is not good"),
        ({10: math.nan}, None, "nothing but what is no number"),
    ],
)
def test_which_checkpoint_is_the_best(losses: dict[int, float | None], expected: int | None, case: str) -> None:
    assert best(losses) == expected, case


def test_the_best_checkpoint_stays_however_old_it_is() -> None:
    assert stale([10, 20, 30, 40], {10: 1.0, 20: 0.9, 30: 1.1, 40: None}, 1) == [10, 30]


@given(present=st.sets(st.integers(1, 50)), data=st.data(), keep=st.integers(0, 5))
def test_the_newest_and_the_best_complete_checkpoints_always_stay(present: set[int], data: st.DataObject, keep: int) -> None:
    steps = sorted(data.draw(st.sets(st.sampled_from(sorted(present)))) if present else set())
    complete = {step: data.draw(st.none() | st.floats()) for step in steps}
    gone = set(stale(present, complete, keep))
    assert gone <= present
    assert not gone & {*steps[-max(keep, 1) :], best(complete)}
    if steps:
        assert all(step < steps[-1] for step in gone)
    else:
        assert not gone


MANIFEST = Manifest(kind=Kind.CHECKPOINT, files=[FileEntry(path="a", size=1, sha256="x")], config_hash="h", base_model="m", step=5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"created_at": "2026-11-25T12:00:00+00:00"}, True),
        ({"details": {"microBatch": 2}}, True),
        ({"step": 6}, False),
        ({"config_hash": "other"}, False),
        ({"files": [FileEntry(path="a", size=1, sha256="y")]}, False),
        ({"dataset_sha256": "other"}, False),
    ],
)
def test_two_manifests_are_the_same_when_their_content_is(change: dict[str, object], expected: bool) -> None:
    assert same(MANIFEST, MANIFEST.model_copy(update=change)) is expected


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-120", 120),
        ("checkpoint-120-merged", None),
        ("checkpoint-", None),
        ("v0-checkpoint-1", None),
        ("last-checkpoint", None),
        ("checkpoint-12\n", None),
    ],
)
def test_only_checkpoint_and_a_number_is_a_checkpoint(name: str, step: int | None) -> None:
    assert checkpoint_step(name) == step
