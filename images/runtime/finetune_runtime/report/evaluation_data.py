"""evaluation.json, and what its page shows: every answer, its timing, and what the gate makes of them."""

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import Target
from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult, Expectation

from .data import Turn


class Answer(Model):
    """One answer. Times in seconds from the request on.

    `tokens`: generated ones, reasoning included. `finish`: why it ended, in the API's words (stop, length). `refused`: what the server said
    instead of answering, for which there are no times. `misses`: what it lacks of its expectation.
    """

    text: str = ""
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    tokens: int = 0
    finish: str = ""
    refused: str = ""
    misses: list[str] = []
    rating: float | None = None
    rating_reason: str = ""

    @property
    def met(self) -> bool:
        """Whether there is an answer, and as it was expected."""
        return not (self.misses or self.refused)

    @property
    def tokens_per_second(self) -> float:
        """Speed once the first token is there; of a single token, over the whole time."""
        generating = self.seconds - self.first_token_seconds
        if self.tokens > 1 and generating > 0:
            return (self.tokens - 1) / generating
        return self.tokens / self.seconds if self.seconds else 0.0


class Asked(Model):
    """A prompt and what the models say to it, one answer for each repeat; empty: that model was not asked."""

    name: str
    conversation: list[Turn]
    expect: Expectation = Expectation()
    candidate: list[Answer] = []
    base: list[Answer] = []
    current: list[Answer] = []


class DriftedAnswer(Model):
    """An answer on the quantisation of the training, and as it is served. Log probabilities: of the training's answer, token by token, by both."""

    prompt: list[Turn]
    trained: str
    served: str
    same: bool
    trained_logprobs: list[float] = []
    served_logprobs: list[float] = []


class GateRecord(Model):
    """One gate: its demands without its prompts, which stand in `asked` with those of promptsFrom. `reasons`: what keeps it closed."""

    demands: Evaluation
    source: str = ""
    asked: list[Asked] = []
    reasons: list[str] = []


class EvaluationRecord(Model):
    """The whole evaluation. `unasked`: why the model of this name (base, current) gave no answers to compare with."""

    namespace: str
    endpoint: str
    version: str
    job: str = ""
    eval_loss: str | None = None
    written: str
    candidate: Target
    base: Target | None = None
    current: Target | None = None
    unasked: dict[str, str] = {}
    result: EvaluationResult
    gates: list[GateRecord]
    drifted: list[DriftedAnswer] = []
