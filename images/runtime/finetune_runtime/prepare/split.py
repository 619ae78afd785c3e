"""Which rows are held out of training. Pure and seeded: the same rows, ratio and seed give the same split, in whatever order the rows are."""

import random

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint64]  # one a row: 64 bits of its SHA-256
Mask = NDArray[np.bool_]  # one a row


def choose_validation(digests: Digests, ratio: float, seed: int) -> Mask:
    """The rows to hold out: none for ratio 0, else at least one and never all. Copies of a row are on the same side.

    Raises ValueError for fewer than 2 different rows. 48 bytes of memory a row.
    """
    rows = len(digests)
    if ratio == 0:
        return np.zeros(rows, dtype=bool)
    different, copies = np.unique(digests, return_counts=True)
    if len(different) < 2:
        raise ValueError("fewer than 2 different rows cannot be split")
    wanted = min(max(1, round(rows * ratio)), rows - 1)
    order = np.argsort(_mixed(different, seed), kind="stable")
    fits = order[copies[order] <= wanted]
    taken = fits[np.cumsum(copies[fits]) <= wanted][: len(different) - 1]
    if not len(taken):  # every row has more copies than are wanted
        taken = order[[np.argmin(copies[order])]]
    return np.isin(digests, different[taken])


def choose_sample(rows: int, count: int, seed: int) -> Mask:
    """`count` of `rows` rows, each with equal chance; all of them where there are not more. 24 bytes of memory a row."""
    mask = np.ones(rows, dtype=bool)
    if count < rows:
        mask[np.argpartition(_mixed(np.arange(rows, dtype=np.uint64), seed), count)[count:]] = False
    return mask


def duplicates(digests: Digests) -> int:
    """How many rows are copies of an earlier row."""
    return len(digests) - len(np.unique(digests))


def _mixed(values: Digests, seed: int) -> Digests:
    """A permutation of 64-bit numbers that looks random and that the seed chooses (the finaliser of SplitMix64)."""
    # Not numpy's generators: what they draw may change between versions, and with it the split of a job that is made again.
    mixed = values ^ np.uint64(random.Random(seed).getrandbits(64))  # noqa: S311  reproducible on purpose, guards nothing
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
