"""The gate between a version that answers and the traffic: where the evaluation of a candidate stands."""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from finetune_operator import names
from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.observe import JobView, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult

from . import errand
from .adapters import served
from .errand import Errand, Stand
from .versions import Question, Target

OWN = "the adapter under the endpoint's own name"


class Gate(Enum):
    """Where the gate stands."""

    OPEN = auto()
    CLOSED = auto()
    ASK = auto()  # the evaluation has to be started
    WAIT = auto()  # it is under way
    AGAIN = auto()  # its result is lost: the Job has to go, then it is started again
    NEXT = auto()  # passed so far: another adapter is asked next
    FAILED = auto()  # it could not be made


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the gate stands, and why."""

    gate: Gate
    reason: str = ""
    message: str = ""
    result: EvaluationResult | None = None
    question: Question | None = None  # whose result it is; None: that of the adapter that the version is made for
    errand: Errand | None = None  # where the Job stands that asks


def loss_fault(gates: tuple[Evaluation, ...], eval_loss: str | None) -> str:
    """What the bounds on the evaluation loss have against a version; empty when nothing. Needs no pod."""
    for gate in gates:
        if gate.eval_loss is None:
            continue
        if eval_loss is None:
            return "no evaluation loss is known of this version, but the gate bounds it with evalLoss.max"
        try:
            passes = float(eval_loss) <= float(gate.eval_loss.max)  # nan does not
        except ValueError:
            return f"the evaluation loss {eval_loss!r} of this version is not a number: write it like 1.08"
        if not passes:
            return f"evaluation loss {eval_loss} is above evalLoss.max {gate.eval_loss.max}"
    return ""


def recorded(target: Target, record: VersionStatus) -> Verdict | None:
    """What is known without asking anything; None when the version has to be asked."""
    for question in target.questions:
        if fault := loss_fault(question.gates, question.eval_loss):
            told = EvaluationResult(passed=False, reasons=[fault])
            return Verdict(Gate.CLOSED, Reason.GATE_CLOSED, named(fault, question, target), told, question)
    for question in target.questions:
        if question.asks and (found := _known(question, record)) and not found.passed:
            return replace(_verdict(found), message=named(_reasons(found), question, target), question=question)
    if unanswered(target, record):
        return None
    own = next((question for question in target.questions if question.served == target.served and question.gates), None)
    result = (_known(own, record) if own.asks else EvaluationResult(passed=True)) if own else None
    return Verdict(Gate.OPEN, Reason.GATE_OPEN, "", result, own)


def unanswered(target: Target, record: VersionStatus) -> list[Question]:
    """Questions of which no result is known, in the order in which they are asked."""
    return [question for question in target.questions if question.asks and not _known(question, record)]


def noted(question: Question, record: VersionStatus, found: EvaluationResult | None) -> dict[str, Any]:
    """Fields of a version's record that hold a result; those of another adapter than the one that it was made for are with that one."""
    fields = {"evaluation": found, "gate": question.gate if found else None}
    if question.served == (record.served_name or ""):
        return fields
    return {"others": [o.model_copy(update=fields) if (o.name or "") == question.served else o for o in record.others or ()]}


def _known(question: Question, record: VersionStatus) -> EvaluationResult | None:
    found = served(record).get(question.served)
    return found.evaluation if found and found.gate == question.gate else None


def named(message: str, question: Question, target: Target) -> str:
    """A fault with the name that it is about, unless that is the one that the version is made for."""
    return message if question.served == target.served else f"{question.served or OWN}: {message}"


def _reasons(found: EvaluationResult) -> str:
    return "; ".join(found.reasons) or "the gate is closed"


def _verdict(found: EvaluationResult) -> Verdict:
    if found.passed:
        return Verdict(Gate.OPEN, Reason.GATE_OPEN, "", found)
    return Verdict(Gate.CLOSED, Reason.GATE_CLOSED, _reasons(found), found)


def evaluation(job: JobView | None, pods: tuple[PodView, ...], now: float) -> Verdict:
    """Where the Kubernetes Job of an evaluation stands. Only a result that says so passes a version.

    One at a time: questions of two at once would slow each other down, and latencies count.
    """
    found = errand.look(job, pods, names.EVALUATE, now, what="evaluation", counts=lambda told: told.evaluation)
    if found.result and found.result.evaluation:
        return _verdict(found.result.evaluation)
    if found.stand is Stand.FAILED:
        return Verdict(Gate.FAILED, Reason.EVALUATION_FAILED, f"the evaluation could not be made: {found.message}")
    if found.stand is Stand.START:
        return Verdict(Gate.ASK)
    gate = Gate.AGAIN if found.stand is Stand.AGAIN else Gate.WAIT
    if found.fault:
        return Verdict(gate, found.fault.reason, found.fault.message, errand=found)
    return Verdict(gate, Reason.EVALUATING, found.message or f"pod {found.pod} asks it the questions of the gate", errand=found)


def job_name(endpoint: str, version: str, question: Question, current: VersionStatus | None) -> str:
    """Name of the Job that asks a question. One that compares is another one for each version it compares with: `current` may lose the traffic meanwhile."""
    other = rival(question, current)
    return names.evaluation_job(endpoint, version, question.gate + (other.name if other else ""))


def rival(question: Question, current: VersionStatus | None) -> VersionStatus | None:
    """The version that a question compares with, without whose answers it cannot be decided."""
    return beside(question, current) if any(gate.not_worse_than_current for gate in question.gates) else None


def beside(question: Question, current: VersionStatus | None) -> VersionStatus | None:
    """The version with the traffic, where it serves something under the name that a question is about."""
    return current if current and question.served in served(current) else None
