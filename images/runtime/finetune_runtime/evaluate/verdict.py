"""What keeps a gate closed, in sentences with the numbers. Pure. Only what is proven opens it: a missing figure keeps it closed."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isnan

from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult
from finetune_runtime.report.evaluation_data import Asked, GateRecord

from .scoring import Answers, mostly_missed, pass_rate, rating, scores, share

MAX_REASONS, MAX_REASON, MAX_FAILED = 8, 512, 10  # of EvaluationResult


def reasons(gate: Evaluation, eval_loss: str | None, asked: Sequence[Asked], unasked: Mapping[str, str], judge_failure: str = "") -> list[str]:
    """Empty: the gate is open. `unasked`: why base or current gave no answers; `judge_failure`: why there are no ratings."""
    found = _loss(gate, eval_loss)
    if not gate.asks:
        return found
    found += _pass_rate(gate, asked)
    for name, demand, demanded in (
        ("base", "notWorseThanBase", gate.not_worse_than_base),
        ("current", "notWorseThanCurrent", gate.not_worse_than_current),
    ):
        if demanded:
            found += _comparison(name, demand, asked, unasked)
    if gate.judge:
        found += _judged(gate.judge.min_score, asked, judge_failure)
    return found


def conclude(gates: Sequence[GateRecord], report: str) -> EvaluationResult:
    """The result over all gates; several with prompts are told apart by their number."""
    asking = [gate for gate in gates if gate.asked]
    told = [f"gate {number}: {reason}" if len(asking) > 1 else reason for number, gate in enumerate(gates, 1) for reason in gate.reasons]
    prompts = [prompt for gate in asking for prompt in gate.asked]
    failed = list(dict.fromkeys(prompt.name for prompt in prompts if mostly_missed(prompt.candidate)))
    return EvaluationResult(
        passed=not told,
        reasons=[reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 6]} [...]" for reason in told[:MAX_REASONS]],
        prompts=len(prompts),
        repeats=max((gate.demands.repeats for gate in asking), default=0),
        candidate=scores([prompt.candidate for prompt in prompts]),
        base=scores([prompt.base for prompt in prompts]),
        current=scores([prompt.current for prompt in prompts]),
        failed_prompts=failed[:MAX_FAILED],
        report=report,
    )


def sentence(result: EvaluationResult) -> str:
    """The result in one line."""
    if not result.passed:
        return f"The gate stays closed: {'; '.join(result.reasons)}."
    if result.candidate is None:
        return "The gate is open."
    figures = f"pass rate {result.candidate.pass_rate}, latency p95 {result.candidate.latency_p95_seconds} s"
    judged = f", judge score {result.candidate.judge_score}" if result.candidate.judge_score else ""
    return f"The gate is open: {figures}{judged} over {_count(result.prompts, 'prompt')}."


def _loss(gate: Evaluation, eval_loss: str | None) -> list[str]:
    if gate.eval_loss is None:
        return []
    bound = gate.eval_loss.max
    if eval_loss is None:
        return [f"no evaluation loss is known of this version, but the gate bounds it with evalLoss.max {bound}"]
    try:
        loss = float(eval_loss)
    except ValueError:
        return [f"the evaluation loss {eval_loss!r} is not a number, but the gate bounds it with evalLoss.max {bound}"]
    return [f"evaluation loss {eval_loss} is above evalLoss.max {bound}"] if isnan(loss) or loss > float(bound) else []


def _pass_rate(gate: Evaluation, asked: Sequence[Asked]) -> list[str]:
    answers = [prompt.candidate for prompt in asked]
    rate, total = pass_rate(answers), sum(len(prompt) for prompt in answers)
    if total and rate >= Fraction(gate.min_pass_rate):
        return []
    missed = [prompt for prompt in asked if not all(answer.met for answer in prompt.candidate)]
    count = sum(not answer.met for prompt in answers for answer in prompt)
    details = f"{count} of {_count(total, 'answer')} missed; first: {missed[0].name}" if missed else "no answers"
    return [f"pass rate {share(rate)} is below minPassRate {gate.min_pass_rate} ({details})"]


def _comparison(name: str, demand: str, asked: Sequence[Asked], unasked: Mapping[str, str]) -> list[str]:
    if name in unasked:
        return [f"{demand} cannot be decided: {unasked[name]}"]
    mine = [prompt.candidate for prompt in asked]
    theirs = [prompt.base if name == "base" else prompt.current for prompt in asked]
    if not any(theirs):
        # The step names a reason for every model that it could not ask. Only a first version has no current one, and it passes.
        return [] if name == "current" else [f"{demand} cannot be decided: the base model was not asked"]
    if pass_rate(mine) >= pass_rate(theirs):
        return []
    lost = next((p.name for p, a, b in zip(asked, mine, theirs, strict=True) if pass_rate([a]) < pass_rate([b])), "")
    what = "the base model" if name == "base" else "the version that has the traffic"
    return [f"pass rate {_rate(mine)} is below that of {what}, {_rate(theirs)} ({demand}; first that is worse: {lost})"]


def _judged(bound: str, asked: Sequence[Asked], failure: str) -> list[str]:
    if failure:
        return [f"there is no judgement: {failure}"]
    mean = rating(prompt.candidate for prompt in asked)
    if mean is None:
        return ["there is no judgement: the judge rated nothing"]
    if mean >= Fraction(bound):
        return []
    worst = min((p for p in asked if rating([p.candidate]) is not None), key=lambda p: rating([p.candidate]) or Fraction(0))
    return [f"judge score {share(mean)} is below judge.minScore {bound} (lowest: {worst.name})"]


def _rate(prompts: Sequence[Answers]) -> str:
    """With the counts: rounded, two rates may look alike that are not."""
    answers = [answer for prompt in prompts for answer in prompt]
    return f"{share(pass_rate(prompts))} ({sum(answer.met for answer in answers)} of {len(answers)})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
