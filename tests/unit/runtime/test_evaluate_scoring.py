"""Figures: exact, and never better on paper than they are."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.evaluate.scoring import consistency, mostly_missed, pass_rate, percentile, rating, scores, share
from finetune_runtime.report.evaluation_data import Answer
from tests.unit.runtime.evaluation_cases import answer, answers

PERCENTILES: dict[str, tuple[list[float], int, float]] = {
    "nothing": ([], 50, 0),
    "one value is every percentile": ([3], 95, 3),
    "the middle of three": ([9, 1, 5], 50, 5),
    "the lower middle of four": ([4, 3, 2, 1], 50, 2),
    "the 19th of twenty": ([float(n) for n in range(1, 21)], 95, 19),
    "the last of ten": ([float(n) for n in range(1, 11)], 95, 10),
}


@pytest.mark.parametrize(("values", "which", "expected"), PERCENTILES.values(), ids=PERCENTILES)
def test_percentile(values: list[float], which: int, expected: float) -> None:
    assert percentile(values, which) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_with_enough_at_or_below_it(values: list[float], which: int) -> None:
    found = percentile(values, which)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= which * len(values)
    assert 100 * sum(value < found for value in values) < which * len(values)


RATES: dict[str, tuple[list[str], Fraction, Fraction]] = {
    "all met alike": (["+++", "+++"], Fraction(1), Fraction(1)),
    "all missed alike": (["---"], Fraction(0), Fraction(1)),
    "met in different words": (["ABA"], Fraction(1), Fraction(0)),
    "one repeat missed": (["++-", "+++"], Fraction(5, 6), Fraction(1, 2)),
    "one repeat each is always consistent": (["A", "b"], Fraction(1, 2), Fraction(1)),
}


@pytest.mark.parametrize(("prompts", "passed", "consistent"), RATES.values(), ids=RATES)
def test_rates(prompts: list[str], passed: Fraction, consistent: Fraction) -> None:
    made = [answers(marks) for marks in prompts]
    assert (pass_rate(made), consistency(made)) == (passed, consistent)


def test_the_same_text_met_once_and_missed_once_is_not_consistent() -> None:
    assert consistency([[answer("same", met=True), answer("same", met=False)]]) == 0


def test_white_space_around_an_answer_is_no_other_answer() -> None:
    assert consistency([[answer("same"), answer(" same\n")]]) == 1


def test_without_answers_nothing_is_passed() -> None:
    assert pass_rate([]) == consistency([]) == 0
    assert [rating([]), scores([]), scores([[], []])] == [None, None, None]


MARKS = st.lists(st.text("+-AbC", min_size=1, max_size=5), min_size=1, max_size=6)


@given(MARKS)
def test_rates_are_shares_and_more_misses_are_never_better(prompts: list[str]) -> None:
    made = [answers(marks) for marks in prompts]
    worse = [answers("-" * len(marks)) if number == 0 else answers(marks) for number, marks in enumerate(prompts)]
    assert 0 <= pass_rate(worse) <= pass_rate(made) <= 1
    assert 0 <= consistency(made) <= 1
    assert (pass_rate(made) == 1) == all(said.met for prompt in made for said in prompt)


@given(st.fractions(0, 5))
def test_a_share_is_never_rounded_up(value: Fraction) -> None:
    assert Fraction(share(value)) <= value < Fraction(share(value)) + Fraction(1, 100)


def test_all_figures() -> None:
    fast = answer(seconds=0.5, first_token_seconds=0.1, tokens=9, rating=5.0)
    slow = answer(met=False, seconds=2.0, first_token_seconds=0.3, tokens=18, rating=4.0)
    found = scores([[fast, slow], [fast]])
    assert found is not None
    assert found.dump() == {
        "passRate": "0.66",
        "consistency": "0.50",
        "latencyP50Seconds": "0.500",
        "latencyP95Seconds": "2.000",
        "timeToFirstTokenSeconds": "0.100",
        "tokensPerSecond": "20.0",
        "judgeScore": "4.66",
    }


def test_a_refused_request_is_missed_and_has_no_times() -> None:
    found = scores([[answer(seconds=3.0)], [Answer(refused="400 too long")]])
    assert found is not None
    assert (found.pass_rate, found.latency_p50_seconds, found.latency_p95_seconds) == ("0.50", "3.000", "3.000")


def test_only_refusals_have_figures_too() -> None:
    found = scores([[Answer(refused="400 too long")]])
    assert found is not None
    assert (found.pass_rate, found.consistency, found.latency_p95_seconds, found.tokens_per_second) == ("0.00", "1.00", "0.000", "0.0")


SPEEDS: dict[str, tuple[Answer, float]] = {
    "after the first token": (answer(seconds=1.1, first_token_seconds=0.1, tokens=11), 10.0),
    "one token": (answer(seconds=0.5, first_token_seconds=0.5, tokens=1), 2.0),
    "all at once": (answer(seconds=0.5, first_token_seconds=0.5, tokens=10), 20.0),
    "none": (Answer(refused="400 too long"), 0.0),
}


@pytest.mark.parametrize(("said", "expected"), SPEEDS.values(), ids=SPEEDS)
def test_speed(said: Answer, expected: float) -> None:
    assert said.tokens_per_second == pytest.approx(expected)


@pytest.mark.parametrize(("marks", "expected"), [("+++", False), ("++-", False), ("+-", False), ("+--", True), ("-", True)])
def test_a_failed_prompt_is_one_of_which_most_answers_missed(marks: str, expected: bool) -> None:
    assert mostly_missed(answers(marks)) == expected
