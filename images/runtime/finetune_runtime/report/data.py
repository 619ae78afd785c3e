"""What the page shows, before it is a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import TrainSummary

CUT = " [...]"  # behind an answer that was cut off
Record = Mapping[str, Any]  # one line of metrics.jsonl


class State(StrEnum):
    """How far the job was when the page was written."""

    PREPARED = "Prepared"
    TRAINING = "Training"
    COMPLETED = "Completed"
    FAILED = "Failed"


class Turn(Model):
    """One message of a conversation."""

    role: str
    content: str


class Answer(Model):
    """What two models say to a prompt. `expected`: the data's own answer; `base` is the model without its adapter, `tuned` with it.

    Of `tuned` also the token ids of prompt and answer, and the log probability of each token of the answer: evaluations of a version that is served
    on another quantisation compare with them. Its end is no part of them.
    """

    prompt: list[Turn]
    expected: str
    base: str
    tuned: str
    prompt_tokens: list[int] = []
    tokens: list[int] = []
    logprobs: list[float] = []


class Answers(Model):
    """Answers of the model as it was after `step`, at most `max_tokens` tokens each."""

    step: int
    max_tokens: int
    answers: list[Answer]


@dataclass(frozen=True)
class ReportData:
    """All of it comes from files that the steps leave; what is not known yet is empty.

    `dataset`: report.json of the prepare step. `records`: of all attempts, in order of their steps. `message`: why the job failed.
    """

    config: JobConfig
    state: State
    written: datetime
    dataset: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    train: TrainSummary | None = None
    hardware: str = ""
    answers: Answers | None = None
    message: str = ""
