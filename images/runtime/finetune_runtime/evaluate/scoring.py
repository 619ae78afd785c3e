"""Figures of answers. Pure; exact where a bound is compared, rounded only where a figure is written."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from finetune_runtime.contract.evaluation import Scores
from finetune_runtime.report.evaluation_data import Answer

Answers = Sequence[Answer]  # of one prompt, one for each repeat


def percentile(values: Iterable[float], share: int) -> float:
    """Nearest-rank percentile, `share` in percent from 1 to 100; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, -(-share * len(ordered) // 100) - 1)] if ordered else 0.0


def pass_rate(prompts: Iterable[Answers]) -> Fraction:
    """Share of answers that met their expectation; 0 without answers."""
    answers = [answer for prompt in prompts for answer in prompt]
    return Fraction(sum(answer.met for answer in answers), len(answers)) if answers else Fraction(0)


def consistency(prompts: Sequence[Answers]) -> Fraction:
    """Share of prompts whose repeats all say the same and all met, or all missed, the expectation; 0 without prompts."""
    same = sum(len({(answer.met, answer.text.strip()) for answer in prompt}) == 1 for prompt in prompts)
    return Fraction(same, len(prompts)) if prompts else Fraction(0)


def rating(prompts: Iterable[Answers]) -> Fraction | None:
    """Mean rating of the answers that have one; None when none has."""
    ratings = [Fraction(answer.rating) for prompt in prompts for answer in prompt if answer.rating is not None]
    return sum(ratings, Fraction(0)) / len(ratings) if ratings else None


def mostly_missed(prompt: Answers) -> bool:
    """Whether more than half of a prompt's answers missed."""
    return 2 * sum(not answer.met for answer in prompt) > len(prompt)


def scores(prompts: Sequence[Answers]) -> Scores | None:
    """All figures of one model; None when it was not asked. Refused requests count as missed, and not in the times."""
    if not any(prompts):
        return None
    timed = [answer for prompt in prompts for answer in prompt if not answer.refused]
    mean = rating(prompts)
    return Scores(
        pass_rate=share(pass_rate(prompts)),
        consistency=share(consistency(prompts)),
        latency_p50_seconds=seconds(percentile((answer.seconds for answer in timed), 50)),
        latency_p95_seconds=seconds(percentile((answer.seconds for answer in timed), 95)),
        time_to_first_token_seconds=seconds(percentile((answer.first_token_seconds for answer in timed), 50)),
        tokens_per_second=f"{percentile((answer.tokens_per_second for answer in timed), 50):.1f}",
        judge_score=None if mean is None else share(mean),
    )


def share(value: Fraction) -> str:
    """Two decimals, rounded down: what is below a bound must not look as if it met it."""
    hundredths = math.floor(value * 100)
    return f"{hundredths // 100}.{hundredths % 100:02d}"


def seconds(value: float) -> str:
    """Milliseconds are enough."""
    return f"{value:.3f}"
