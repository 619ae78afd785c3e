"""The split is reproducible, complete and never one-sided."""

from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, raises

from finetune_runtime.prepare.split import choose_validation, duplicates, leaks

SIZES = [(100, 0.05, 5), (149, 0.05, 7), (2, 0.05, 1), (10, 0.01, 1), (10, 1.0, 9), (2, 1.0, 1), (1000, 0.5, 500)]


@mark.parametrize(("rows", "ratio", "held_out"), SIZES)
def test_share_is_rounded_with_one_row_on_each_side(rows: int, ratio: float, held_out: int) -> None:
    assert len(choose_validation(rows, ratio, seed=42)) == held_out


def test_ratio_zero_holds_nothing_out_even_of_one_row() -> None:
    assert choose_validation(1, 0, seed=42) == frozenset()


@mark.parametrize("rows", [0, 1])
def test_too_few_rows_cannot_be_split(rows: int) -> None:
    with raises(ValueError, match="fewer than 2 rows"):
        choose_validation(rows, 0.05, seed=42)


def test_split_of_a_seed_never_changes_between_versions() -> None:
    # A new version of the operator must not move rows from one side to the other for a configuration that hashes the same.
    assert sorted(choose_validation(20, 0.2, seed=42)) == [0, 3, 7, 8]
    assert sorted(choose_validation(20, 0.2, seed=43)) != [0, 3, 7, 8]


@given(st.integers(2, 2000), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_any_split_is_reproducible_and_leaves_rows_on_both_sides(rows: int, ratio: float, seed: int) -> None:
    chosen = choose_validation(rows, ratio, seed)
    assert chosen == choose_validation(rows, ratio, seed)
    assert chosen <= set(range(rows))
    assert len(chosen) < rows
    assert bool(chosen) == (ratio > 0)


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_copies_and_leaks_are_counted_row_by_row(train: list[int], validation: list[int]) -> None:
    assert duplicates(train) == sum(row in train[:number] for number, row in enumerate(train))
    assert leaks(train, validation) == len([row for row in train if row in validation])
