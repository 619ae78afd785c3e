"""The gate between a version that answers and the traffic: where the evaluation of a candidate stands."""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from finetune_operator import clock, names
from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.observe import JobView, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.evaluation import Evaluation, EvaluationResult

from .adapters import served
from .faults import ending, result, waiting
from .step import RESULT_PATIENCE
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
    """Where the Kubernetes Job of an evaluation stands. Only a result that says so passes a version."""
    # One at a time: questions of two at once would slow each other down, and latencies count.
    busy = next((p for p in pods if p.step == names.EVALUATE and p.alive and (job is None or job.deleting or p.parent != job.name)), None)
    if busy or (job and job.deleting):
        return Verdict(Gate.WAIT, Reason.EVALUATING, ending(busy) if busy else "an older evaluation is ending")
    if job is None:
        return Verdict(Gate.ASK)
    mine = [p for p in pods if p.parent == job.name]
    for ended in (p.ended for p in mine):
        found = result(ended)
        if ended and ended.exit_code == 0 and found and found.evaluation:
            return _verdict(found.evaluation)
    if job.failed:
        told = next((t for p in mine if (t := result(p.ended))), None)
        message = told.message if told else job.failure
        return Verdict(Gate.FAILED, Reason.EVALUATION_FAILED, f"the evaluation could not be made: {message}")
    if job.complete:
        left = clock.seconds(job.finished_at) + RESULT_PATIENCE - now if job.finished_at else 0.0
        return Verdict(Gate.WAIT if left > 0 else Gate.AGAIN, Reason.EVALUATING, "waiting for the result of the evaluation")
    pod = max((p for p in mine if p.alive), key=lambda p: (p.created_at, p.name), default=None)
    if pod and (fault := waiting(pod)):
        return Verdict(Gate.WAIT, fault.reason, f"evaluation pod {pod.name}: {fault.message}")
    if pod and pod.deleting:
        return Verdict(Gate.WAIT, Reason.EVALUATING, ending(pod))
    return Verdict(Gate.WAIT, Reason.EVALUATING, f"pod {pod.name} asks it the questions of the gate" if pod else "waiting for the evaluation's pod")
