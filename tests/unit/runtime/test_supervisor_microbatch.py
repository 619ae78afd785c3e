"""The micro-batch: as large as asked for or as usual, always a divisor of the effective batch."""

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.train.microbatch import initial, smaller


@pytest.mark.parametrize(
    ("requested", "effective", "cpu_only", "proven", "expected", "case"),
    [
        ("Auto", 16, False, 0, 8, "a GPU starts at 8"),
        ("Auto", 16, True, 0, 4, "a CPU starts at 4"),
        ("Auto", 4, False, 0, 4, "never more than a step has"),
        ("Auto", 12, False, 0, 6, "the largest divisor of 12 that is at most 8"),
        ("Auto", 7, True, 0, 1, "a prime above 4"),
        ("Auto", 1, False, 0, 1, "one row a step"),
        (16, 16, False, 0, 16, "the user's word, also above 8"),
        (5, 16, False, 0, 4, "the next divisor below the user's word"),
        (64, 16, False, 0, 16, "the user's word is more than a step has"),
        ("Auto", 16, False, 2, 2, "an earlier pod had to come down to 2"),
        ("Auto", 16, True, 8, 4, "an earlier pod had a GPU, this one has not"),
        (8, 16, False, 2, 2, "what did not fit will not fit again"),
    ],
)
def test_where_a_run_starts(requested: int | Literal["Auto"], effective: int, cpu_only: bool, proven: int, expected: int, case: str) -> None:
    assert initial(requested, effective, cpu_only=cpu_only, proven=proven) == expected, case


@pytest.mark.parametrize(("micro", "effective", "expected"), [(8, 16, 4), (6, 12, 3), (3, 12, 1), (5, 5, 1), (2, 2, 1), (1, 16, None)])
def test_after_an_out_of_memory_error(micro: int, effective: int, expected: int | None) -> None:
    assert smaller(micro, effective) == expected


@given(effective=st.integers(1, 65536), requested=st.integers(1, 65536))
def test_a_step_never_changes_its_size_and_halving_ends_at_one_row(effective: int, requested: int) -> None:
    micro: int | None = initial(requested, effective, cpu_only=False)
    sizes = []
    while micro:
        assert effective % micro == 0
        sizes.append(micro)
        micro = smaller(micro, effective)
    assert sizes[-1] == 1
    assert all(later * 2 <= earlier for earlier, later in pairwise(sizes))
