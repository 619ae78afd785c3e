"""The page of an evaluation: verdict, figures, and the answers of base, current version and candidate side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_runtime.contract.evaluation import Evaluation, Expectation, Scores

from .data import Turn
from .evaluation_data import Answer, Asked, DriftedAnswer, EvaluationRecord, GateRecord
from .templates import templates

MAX_SHOWN = 200  # prompts of a gate; evaluation.json has them all
MAX_DIFFERENT = 3  # answers of a model to one prompt
_NAMES = {"base": "Base model", "current": "Current version", "candidate": "Candidate"}
_FIGURES = {
    "pass_rate": "Pass rate",
    "consistency": "Consistency",
    "latency_p50_seconds": "Latency p50, s",
    "latency_p95_seconds": "Latency p95, s",
    "time_to_first_token_seconds": "First token, s",
    "tokens_per_second": "Tokens/s",
    "judge_score": "Judge score",
}


@dataclass(frozen=True)
class Said:
    """Equal answers of one model. `times`: how many of how many; `notes`: why they missed, what the judge says, where they were cut."""

    text: str
    met: bool
    times: str
    notes: list[str]


@dataclass(frozen=True)
class Column:
    """What one model says to a prompt. `met` of `answers`; `more`: different answers that are not shown."""

    name: str
    met: int
    answers: int
    said: list[Said]
    more: int


@dataclass(frozen=True)
class PromptView:
    """A prompt with a column for every model that was asked."""

    name: str
    conversation: list[Turn]
    expected: list[str]
    columns: list[Column]

    @property
    def missed(self) -> bool:
        """Whether the candidate missed any answer."""
        candidate = self.columns[-1]
        return candidate.met < candidate.answers


@dataclass(frozen=True)
class DriftView:
    """What another quantisation changes. `note`: why that is not known; `different`: answers that are not the same."""

    note: str
    facts: list[tuple[str, str]]
    different: list[DriftedAnswer]


@dataclass(frozen=True)
class GateView:
    """A gate with its demands in words, and its prompts: those that the candidate missed come first."""

    title: str
    demands: list[tuple[str, str]]
    reasons: list[str]
    prompts: list[PromptView]
    hidden: int


def render(record: EvaluationRecord) -> str:
    """One HTML document that needs nothing else: no script, no font, no address."""
    asked = [name for name in _NAMES if any(getattr(prompt, name) for gate in record.gates for prompt in gate.asked)]
    result = record.result
    return templates.get_template("evaluation.html.j2").render(
        record=record,
        state="Gate open" if result.passed else "Gate closed",
        written=record.written.replace("T", " ").removesuffix("+00:00") + " UTC",
        figures=_headline(record),
        facts=_facts(record),
        notes=[f"{_NAMES[name]}: not in the comparison, because {why}." for name, why in record.unasked.items()],
        drift=_drift(record),
        columns=[_NAMES[name] for name in asked],
        table=_table([getattr(result, name) for name in asked]),
        gates=[_gate(gate, number, len(record.gates), asked) for number, gate in enumerate(record.gates, 1)],
    )


def expectations(expect: Expectation) -> list[str]:
    """What an answer must be like, in words."""
    found = [f"contains \u201c{text}\u201d" for text in expect.contains] + [f"does not contain \u201c{text}\u201d" for text in expect.not_contains]
    found += [f"matches {expect.regex}"] if expect.regex else []
    found += [f"is JSON as in {expect.json_schema}"] if expect.json_schema else []
    return found + ([f"within {expect.max_latency_seconds} s"] if expect.max_latency_seconds else [])


def _headline(record: EvaluationRecord) -> list[tuple[str, str, str]]:
    result = record.result
    figures: list[tuple[str, str, str]] = []
    if scores := result.candidate:
        answers = [answer for gate in record.gates for prompt in gate.asked for answer in prompt.candidate]
        figures = [
            ("Pass rate", scores.pass_rate, f"{sum(answer.met for answer in answers):,} of {len(answers):,} answers"),
            ("Consistency", scores.consistency, f"{result.prompts:,} prompts, up to {result.repeats} times"),
            ("Latency p95", f"{scores.latency_p95_seconds} s", f"p50 {scores.latency_p50_seconds} s"),
            ("First token", f"{scores.time_to_first_token_seconds} s", "median"),
            ("Speed", scores.tokens_per_second, "tokens/s, median"),
        ]
        if scores.judge_score:
            figures.append(("Judge score", scores.judge_score, "mean, 1 to 5"))
    if record.eval_loss is not None:
        figures.append(("Evaluation loss", record.eval_loss, ""))
    return figures


def _facts(record: EvaluationRecord) -> list[tuple[str, str]]:
    facts = [("Version", record.version), ("FineTuneJob", record.job)]
    facts += [(_NAMES[name], f"{target.model} at {target.url}") for name in reversed(_NAMES) if (target := getattr(record, name))]
    return [(name, value) for name, value in facts if value]


def _drift(record: EvaluationRecord) -> DriftView | None:
    found = record.result.quantization_drift
    if found is None:
        return None
    facts = [("Trained on", f"{found.trained or 'an unknown'} base"), ("Served as", f"quantization {found.served}")]
    if found.unmeasured:
        return DriftView(f"By how much answers change is not known: {found.unmeasured}.", facts, [])
    facts.append(("Same answers", f"{found.same_answers} of {found.prompts} prompts of the validation data, greedily"))
    if found.first_difference:
        facts.append(("First difference", f"after {found.first_difference} characters, on average"))
    if found.logprob_difference:
        tokens = sum(len(answer.served_logprobs) for answer in record.drifted)
        facts.append(("Log probability", f"differs by {found.logprob_difference} on average, over {tokens:,} tokens of the training's answers"))
    return DriftView("", facts, [answer for answer in record.drifted if not answer.same])


def _table(columns: Sequence[Scores]) -> list[tuple[str, list[str]]]:
    rows = [(words, [getattr(scores, name) or "\u2013" for scores in columns]) for name, words in _FIGURES.items()]
    return [(words, values) for words, values in rows if columns and set(values) != {"\u2013"}]


def _gate(gate: GateRecord, number: int, gates: int, asked: Sequence[str]) -> GateView:
    views = sorted((_prompt(prompt, asked) for prompt in gate.asked), key=lambda view: not view.missed)
    title = f"Gate {number}" if gates > 1 else "Prompts"
    return GateView(title, list(_demands(gate.demands, gate.source)), gate.reasons, views[:MAX_SHOWN], len(views[MAX_SHOWN:]))


def _demands(demands: Evaluation, source: str) -> Iterable[tuple[str, str]]:
    if demands.eval_loss:
        yield "Evaluation loss", f"at most {demands.eval_loss.max}"
    if not demands.asks:
        return
    compared = [name for name, wanted in (("base model", demands.not_worse_than_base), ("current version", demands.not_worse_than_current)) if wanted]
    yield "Pass rate", f"at least {demands.min_pass_rate}" + (f", and not below that of the {' and the '.join(compared)}" if compared else "")
    generation = demands.generation
    yield "Asked", f"{demands.repeats} times each, temperature {generation.temperature}, top-p {generation.top_p}, at most {generation.max_tokens} tokens"
    if source:
        yield "Prompts from", source
    if demands.judge:
        yield "Judge", f"{demands.judge.model} at {demands.judge.endpoint}, mean rating at least {demands.judge.min_score}"


def _prompt(prompt: Asked, asked: Sequence[str]) -> PromptView:
    return PromptView(prompt.name, prompt.conversation, expectations(prompt.expect), [_column(_NAMES[name], getattr(prompt, name)) for name in asked])


def _column(name: str, answers: Sequence[Answer]) -> Column:
    groups: dict[tuple[str, str, bool], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.text, answer.refused, answer.met), []).append(answer)
    said = [_said(group, len(answers)) for group in groups.values()]
    return Column(name, sum(answer.met for answer in answers), len(answers), said[:MAX_DIFFERENT], len(said[MAX_DIFFERENT:]))


def _said(group: Sequence[Answer], answers: int) -> Said:
    first = group[0]
    notes = [f"refused: {first.refused}"] if first.refused else [f"{miss}" for miss in dict.fromkeys(miss for answer in group for miss in answer.misses)]
    if first.finish == "length":
        notes.append("cut at the longest answer that is allowed")
    if first.rating is not None:
        notes.append(f"judge: {first.rating:g}" + (f", {first.rating_reason}" if first.rating_reason else ""))
    return Said(first.text, first.met, f"{len(group)} of {answers}" if answers > 1 else "", notes)
