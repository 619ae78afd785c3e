"""Which rows are held out of training. Pure and seeded: the same rows, ratio and seed give the same split."""

import random
from collections.abc import Sequence
from typing import TypeVar

_Digest = TypeVar("_Digest")


def choose_validation(rows: int, ratio: float, seed: int) -> frozenset[int]:
    """Indices of the rows to hold out of `rows`: none for ratio 0, else at least one and never all. Raises ValueError for fewer than 2 rows."""
    if ratio == 0:
        return frozenset()
    if rows < 2:
        raise ValueError("fewer than 2 rows cannot be split")
    count = min(max(1, round(rows * ratio)), rows - 1)
    return frozenset(random.Random(seed).sample(range(rows), count))  # noqa: S311  reproducible on purpose, guards nothing


def duplicates(digests: Sequence[_Digest]) -> int:
    """How many rows are copies of an earlier row."""
    return len(digests) - len(set(digests))


def leaks(train: Sequence[_Digest], validation: Sequence[_Digest]) -> int:
    """How many training rows are also validation rows; they make the evaluation loss look better than it is."""
    held_out = set(validation)
    return sum(digest in held_out for digest in train)
