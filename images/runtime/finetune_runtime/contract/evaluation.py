"""The gate between training and traffic: what a version is asked, and what came of it.

pydantic types shared by the CRDs, the operator and the step `evaluate`. Figures in a result are strings, because they end up in a status
and Kubernetes API conventions forbid floats there.
"""

import json
import re
from typing import Annotated, Literal

from pydantic import Field

from .base import Fraction, Model, PositiveFloat
from .spec import DatasetSource, SecretRef, rules

Text = Annotated[str, Field(max_length=1024)]
Content = Annotated[str, Field(max_length=8192)]
NonNegative = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=16)]
Figure = Annotated[str, Field(max_length=32)]


class EvalLoss(Model):
    """Bound on the evaluation loss."""

    max: PositiveFloat = Field(description="Largest evaluation loss that passes.")


class Expectation(Model):
    """What an answer must be like; all that is given must hold."""

    contains: list[Text] = Field(default=[], max_length=32, description="Every one of these must occur, in upper or lower case.")
    not_contains: list[Text] = Field(default=[], max_length=32, description="None of these may occur, in upper or lower case.")
    regex: str = Field(default="", max_length=1024, description="Python regular expression that must match somewhere in the answer.")
    json_schema: str = Field(default="", max_length=8192, description="JSON schema that the answer, read as JSON, must satisfy; as JSON text.")
    max_latency_seconds: PositiveFloat | None = Field(default=None, description="Longest time for the whole answer, in seconds.")


class Message(Model):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: Content = Field(description="What is said.")


class EvaluationPrompt(Model):
    """One question with its expectation."""

    model_config = rules(
        {
            "rule": "(size(self.prompt) > 0) != (size(self.messages) > 0)",
            "message": "a prompt has either prompt (one user message) or messages (a conversation)",
            "fieldPath": ".prompt",
        }
    )
    name: str = Field(min_length=1, max_length=63, description="Name in results and report.")
    prompt: str = Field(default="", max_length=8192, description="User message; or give messages.")
    system: str = Field(default="", max_length=8192, description="System message; empty: none but what the chat template adds.")
    messages: list[Message] = Field(default=[], max_length=64, description="A whole conversation that ends with the user's turn.")
    expect: Expectation = Field(default=Expectation(), description="What the answer must be like.")

    def conversation(self) -> list[dict[str, str]]:
        """Messages for a chat completion."""
        turns = [{"role": m.role, "content": m.content} for m in self.messages] or [{"role": "user", "content": self.prompt}]
        return [{"role": "system", "content": self.system}, *turns] if self.system else turns


class Generation(Model):
    """How answers are generated."""

    max_tokens: int = Field(default=256, ge=1, le=32768, description="Longest answer in tokens.")
    temperature: NonNegative = Field(default="0", description="Sampling temperature; 0: greedy.")
    top_p: Fraction = Field(default="1", description="Share of the probability that sampling draws from, 0 to 1.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the first repeat; each further repeat adds one.")


class Judge(Model):
    """A model that rates answers from 1 (bad) to 5 (good)."""

    endpoint: str = Field(pattern=r"^https?://[^\s]+$", max_length=512, description="Base URL of an OpenAI-compatible API, with /v1.")
    model: str = Field(min_length=1, max_length=256, description="Model to ask.")
    secret_ref: SecretRef | None = Field(default=None, description="Secret whose key OPENAI_API_KEY is the API key.")
    rubric: str = Field(default="", max_length=8192, description="What a good answer is like; empty: helpful, correct and to the point.")
    min_score: PositiveFloat = Field(default="4", description="Smallest mean rating that passes, 1 to 5.")


class Evaluation(Model):
    """Gate between training and traffic. A version that does not pass gets none."""

    model_config = rules(
        {
            "rule": "!(has(self.judge) || self.notWorseThanBase || self.notWorseThanCurrent) || size(self.prompts) > 0 || has(self.promptsFrom)",
            "message": "judge, notWorseThanBase and notWorseThanCurrent need prompts or promptsFrom",
            "fieldPath": ".prompts",
        }
    )
    eval_loss: EvalLoss | None = Field(default=None, description="Bound on the evaluation loss that training ended with.")
    prompts: list[EvaluationPrompt] = Field(default=[], max_length=64, description="Questions with expectations.")
    prompts_from: DatasetSource | None = Field(
        default=None, description="Further questions: JSON Lines, each line an entry as in prompts. samples: so many of them, the first ones."
    )
    min_pass_rate: Fraction = Field(default="0.8", description="Share of answers that must meet their expectation, 0 to 1.")
    not_worse_than_base: bool = Field(default=False, description="The pass rate must be at least that of the base model.")
    not_worse_than_current: bool = Field(
        default=False, description="The pass rate must be at least that of the version that has the traffic; the first version passes."
    )
    repeats: int = Field(default=3, ge=1, le=20, description="Times each prompt is asked.")
    generation: Generation = Field(default=Generation(), description="How answers are generated.")
    judge: Judge | None = Field(default=None, description="Optional judge; its failure never passes a version.")

    @property
    def asks(self) -> bool:
        """Whether the served version has to be asked anything."""
        return bool(self.prompts) or self.prompts_from is not None


def fault(evaluation: Evaluation) -> str:
    """What no pattern of the CRD can find: the place and the error of an expectation that cannot be read; empty when there is none."""
    for prompt in evaluation.prompts:
        try:
            re.compile(prompt.expect.regex)
        except (re.error, OverflowError, RecursionError) as error:
            return f"evaluation.prompts[{prompt.name}].expect.regex: {error}"
        try:
            schema = json.loads(prompt.expect.json_schema or "{}")
        except (ValueError, RecursionError) as error:
            return f"evaluation.prompts[{prompt.name}].expect.jsonSchema is not JSON: {error}"
        if not isinstance(schema, dict | bool):
            return f"evaluation.prompts[{prompt.name}].expect.jsonSchema: a JSON schema is an object"
    names = [prompt.name for prompt in evaluation.prompts]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        return f"evaluation.prompts: two prompts are named {twice}"
    return ""


class Scores(Model):
    """How one model answered, over all prompts and repeats."""

    pass_rate: Figure = Field(description="Share of answers that met their expectation, 0 to 1.")
    consistency: Figure = Field(description="Share of prompts whose repeats all met, or all missed, the expectation with the same answer, 0 to 1.")
    latency_p50_seconds: Figure = Field(description="Median time for a whole answer in seconds.")
    latency_p95_seconds: Figure = Field(description="95th percentile of the time for a whole answer in seconds.")
    time_to_first_token_seconds: Figure = Field(description="Median time to the first token in seconds.")
    tokens_per_second: Figure = Field(description="Median generation speed of one answer.")
    judge_score: Figure | None = Field(default=None, description="Mean rating by the judge, 1 to 5.")


class QuantizationDrift(Model):
    """By how much answers change because the version is not served on the quantisation that it was trained on. Measured on prompts of the training's
    validation data, which the training process answered at its end; on how many tokens is in the report.
    """

    trained: Annotated[str, Field(max_length=32)] = Field(default="", description="How the base model was held in training, for example nf4.")
    served: Annotated[str, Field(max_length=32)] = Field(description="spec.quantization of the version.")
    prompts: int = Field(default=0, description="Prompts that were compared.")
    same_answers: Figure | None = Field(default=None, description="Share of prompts with the same answer, word for word, at temperature 0; 0 to 1.")
    first_difference: Figure | None = Field(default=None, description="Characters that answers which differ have in common at their beginning, on average.")
    logprob_difference: Figure | None = Field(
        default=None,
        description="Mean absolute difference of the log probabilities of the training's answers, token by token; where the engine tells them.",
    )
    unmeasured: Annotated[str, Field(max_length=256)] | None = Field(default=None, description="Why there are no figures.")


class EvaluationResult(Model):
    """What came of the gate."""

    passed: bool = Field(description="Whether the gate is open.")
    reasons: list[Annotated[str, Field(max_length=512)]] = Field(default=[], max_length=8, description="What keeps the gate closed, with the numbers.")
    prompts: int = Field(default=0, description="Prompts that were asked.")
    repeats: int = Field(default=0, description="Times each was asked.")
    candidate: Scores | None = Field(default=None, description="The version that wants the traffic.")
    base: Scores | None = Field(default=None, description="The base model without adapter.")
    current: Scores | None = Field(default=None, description="The version that had the traffic.")
    quantization_drift: QuantizationDrift | None = Field(default=None, description="Absent where the version is served as it was trained.")
    failed_prompts: list[Annotated[str, Field(max_length=63)]] = Field(default=[], max_length=10, description="Prompts of which most answers missed.")
    report: str = Field(default="", max_length=1200, description="S3 URI of the page with all answers side by side.")
