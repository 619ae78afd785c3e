"""The choice of moments, without any pod."""

from collections import Counter
from signal import SIGKILL, SIGTERM

import pytest

from tests.kill.moments import Landmark, kills

TIMELINE = [
    Landmark("training on ", 1.0),
    Landmark("starting ", 1.2),
    Landmark("'global_step/max_steps': '1/2'", 7.0),
    Landmark("'global_step/max_steps': '2/2'", 7.5),
    Landmark("adapter committed", 9.5),
]
SLOWER = [Landmark(landmark.words, 3 * landmark.seconds) for landmark in TIMELINE]


@pytest.mark.parametrize("count", [2, 5, 80])
def test_both_signals_are_spread_over_the_whole_life_of_the_pod(count: int) -> None:
    chosen = kills(TIMELINE, 10.0, count, seed=1)
    assert [kill.number for kill in chosen] == list(range(count))
    assert Counter(kill.signal for kill in chosen) == Counter({SIGTERM: count // 2, SIGKILL: count - count // 2})
    starts = {"": 0.0} | {landmark.words: landmark.seconds for landmark in TIMELINE}
    for number in (SIGTERM, SIGKILL):
        moments = [starts[kill.words] + kill.delay for kill in chosen if kill.signal is number]
        assert all(0 <= moment < 10 for moment in moments)
        if count == 80:
            assert {kill.words for kill in chosen if kill.signal is number} == set(starts)


def test_a_seed_means_the_same_stretches_on_a_slower_machine() -> None:
    here, there = kills(TIMELINE, 10.0, 10, seed=7), kills(SLOWER, 30.0, 10, seed=7)
    assert [(kill.signal, kill.words) for kill in here] == [(kill.signal, kill.words) for kill in there]
    assert [kill.delay * 3 for kill in here] == pytest.approx([kill.delay for kill in there])
    assert kills(TIMELINE, 10.0, 10, seed=8) != here
