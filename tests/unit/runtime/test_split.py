"""The split is reproducible, complete and never one-sided, and keeps copies together."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, raises

from finetune_runtime.prepare.split import Digests, choose_sample, choose_validation, duplicates

SIZES = [(100, 0.05, 5), (149, 0.05, 7), (2, 0.05, 1), (10, 0.01, 1), (10, 1.0, 9), (2, 1.0, 1), (1000, 0.5, 500)]


def digests(*values: int) -> Digests:
    return np.array(values, dtype=np.uint64)


@mark.parametrize(("rows", "ratio", "held_out"), SIZES)
def test_share_is_rounded_with_one_row_on_each_side(rows: int, ratio: float, held_out: int) -> None:
    assert np.count_nonzero(choose_validation(digests(*range(rows)), ratio, seed=42)) == held_out


def test_ratio_zero_holds_nothing_out_even_of_one_row() -> None:
    assert choose_validation(digests(7), 0, seed=42).tolist() == [False]


@mark.parametrize("rows", [[], [7], [7, 7, 7]], ids=["no row", "one row", "three copies"])
def test_too_few_different_rows_cannot_be_split(rows: list[int]) -> None:
    with raises(ValueError, match="fewer than 2 different rows"):
        choose_validation(digests(*rows), 0.05, seed=42)


# Rows, ratio, rows held out at the most and at the least.
COPIES = {
    "one row has most of the copies": ([1] * 95 + [2, 3, 4, 5, 6], 0.05, (4, 5)),
    "every row is there ten times, one is held out": ([number for number in range(10) for _ in range(10)], 0.05, (10, 10)),
    "two rows, one of them twice": ([1, 1, 2], 0.3, (1, 1)),
    "two rows, both twice": ([1, 1, 2, 2], 0.25, (2, 2)),
}


@mark.parametrize("name", COPIES)
@mark.parametrize("seed", range(20))
def test_copies_change_the_share_as_little_as_they_must(name: str, seed: int) -> None:
    rows, ratio, (least, most) = COPIES[name]
    assert least <= np.count_nonzero(choose_validation(digests(*rows), ratio, seed)) <= most


def test_split_and_sample_of_a_seed_never_change_between_versions() -> None:
    # A new version of the operator must not move rows from one side to the other for a configuration that hashes the same.
    rows = digests(*range(20))
    assert np.flatnonzero(choose_validation(rows, 0.2, seed=42)).tolist() == [9, 12, 14, 15]
    assert np.flatnonzero(choose_validation(rows, 0.2, seed=43)).tolist() != [9, 12, 14, 15]
    assert np.flatnonzero(choose_sample(20, 4, seed=42)).tolist() == [9, 12, 14, 15]
    assert np.flatnonzero(choose_sample(20, 4, seed=43)).tolist() != [9, 12, 14, 15]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), min_size=2, max_size=200), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_any_split_is_reproducible_and_has_copies_on_one_side_and_rows_on_both(rows: list[int], ratio: float, seed: int) -> None:
    if len(set(rows)) < 2:
        return
    chosen = choose_validation(digests(*rows), ratio, seed)
    assert chosen.tolist() == choose_validation(digests(*rows), ratio, seed).tolist()
    held_out = {row for row, is_held_out in zip(rows, chosen, strict=True) if is_held_out}
    kept = {row for row, is_held_out in zip(rows, chosen, strict=True) if not is_held_out}
    assert not held_out & kept
    assert kept
    assert bool(held_out) == (ratio > 0)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=50, unique=True), st.integers(0, 99))
def test_split_follows_the_rows_and_not_their_order(rows: list[int], seed: int) -> None:
    def held_out(order: list[int]) -> set[int]:
        return {row for row, chosen in zip(order, choose_validation(digests(*order), 0.3, seed), strict=True) if chosen}

    assert held_out(rows) == held_out(sorted(rows))


@mark.parametrize(("rows", "count", "taken"), [(10, 3, 3), (10, 10, 10), (10, 11, 10), (0, 5, 0), (1, 1, 1)])
def test_sample_has_the_rows_that_were_asked_for_or_all(rows: int, count: int, taken: int) -> None:
    assert np.count_nonzero(choose_sample(rows, count, seed=42)) == taken


def test_every_row_has_the_same_chance_to_be_sampled() -> None:
    drawn = Counter(row for seed in range(4000) for row in np.flatnonzero(choose_sample(10, 3, seed)).tolist())
    assert all(1050 < drawn[row] < 1350 for row in range(10)), drawn  # 1200 expected, 5 standard deviations


@given(st.lists(st.integers(0, 5)))
def test_copies_are_counted_row_by_row(rows: list[int]) -> None:
    assert duplicates(digests(*rows)) == sum(row in rows[:number] for number, row in enumerate(rows))
