"""When a training no longer gets better."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.train.early_stopping import Rule


@pytest.mark.parametrize(
    ("losses", "patience", "least", "expected", "case"),
    [
        ([], 1, 0.0, False, "no evaluation yet"),
        ([2.0], 1, 0.0, False, "the first one is the best so far"),
        ([2.0, 1.9, 1.8], 1, 0.0, False, "it gets better"),
        ([2.0, 2.1], 1, 0.0, True, "one evaluation without a better loss"),
        ([2.0, 2.1, 2.2], 3, 0.0, False, "not often enough in a row"),
        ([2.0, 2.1, 1.9, 2.0, 2.0], 3, 0.0, False, "a better one in between starts the count anew"),
        ([2.0, 2.0, 2.0], 2, 0.0, True, "equal is not better"),
        ([2.0, 1.995, 1.991], 2, 0.01, True, "better by less than asked for"),
        ([2.0, 1.98, 1.96], 2, 0.01, False, "better by more than asked for"),
        ([math.nan, math.nan], 2, 0.0, True, "what is no number is not better"),
        ([math.nan, 2.0], 2, 0.0, False, "any number is better than none"),
    ],
)
def test_when_a_training_stops(losses: list[float], patience: int, least: float, expected: bool, case: str) -> None:
    assert Rule(patience, least).stops(losses) is expected, case


@given(losses=st.lists(st.floats(), max_size=30), patience=st.integers(1, 5))
def test_a_resumed_run_stops_where_the_unbroken_one_would(losses: list[float], patience: int) -> None:
    """The decision depends on the losses only, and once there are `patience` useless ones at the end it is to stop."""
    rule = Rule(patience)
    assert Rule.parse(rule.encode()) == rule
    assert rule.stops([*losses, *[math.inf] * patience])


def test_without_a_rule_nothing_stops() -> None:
    assert Rule.parse(None) is None
