"""What a pod's state means: the cause in one word and a sentence with the cure."""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_operator.observe import Ended, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.result import Exit, StepResult
from finetune_runtime.contract.result import Reason as StepReason

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_UNKNOWN, _EVICTED = "ContainerStatusUnknown", "Evicted"
_SIGNALED = 128  # exit codes above it are signals, by the convention of shells and container runtimes
_TERMINAL = (Exit.INVALID_CONFIG, Exit.DATA_INVALID, Exit.MODEL_INVALID, Exit.OUT_OF_MEMORY)


LOST_NODE = "If that node is lost for good, delete its Node object"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something is not getting on."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed, and whether another try can help."""

    reason: str
    message: str
    exit_code: int | None
    terminal: bool  # no retry can help
    counts: bool  # against retries.limit


def refusal(words: Iterable[str]) -> str:
    """What the API server or an admission webhook says against children that have to be made."""
    return f"the API server refuses {'; '.join(words)}. Correct what it names, here or in the cluster; it goes on by itself"


def ending(pod: PodView, why: str = "") -> str:
    """That a pod has to end first, and what to do when it never does."""
    return f"waiting for pod {pod.name} on node {pod.node or '(none)'} to end{why}. {LOST_NODE}"


def not_created(job: str) -> Fault:
    """Nobody makes the pod of a Kubernetes Job."""
    return Fault(
        Reason.POD_NOT_CREATED,
        f"Kubernetes Job {job} has no pod: a ResourceQuota, a LimitRange or an admission policy may refuse it; its events have the words "
        f"(kubectl describe job {job})",
    )


def waiting(pod: PodView) -> Fault | None:
    """Why a pod does not start; None when it is on its way."""
    if pod.waiting_reason in _PULL:
        return Fault(
            Reason.IMAGE_PULL_FAILED,
            f"the image cannot be pulled: {pod.waiting_message or pod.waiting_reason}. "
            "Check the image names and imagePullSecrets in the operator's chart values; it goes on by itself once they are right",
        )
    if pod.waiting_reason == "CreateContainerConfigError":
        missing = re.search(r'secret "([^"]+)" not found', pod.waiting_message)
        if missing:
            return Fault(Reason.SECRET_NOT_FOUND, f'Secret "{missing[1]}" does not exist in this namespace: create it, and it goes on by itself')
        key = re.search(r"couldn't find key (\S+) in Secret (\S+)", pod.waiting_message)
        if key:
            return Fault(Reason.SECRET_NOT_FOUND, f"Secret {key[2]} has no key {key[1]}: add it, and it goes on by itself")
        return Fault(Reason.CONTAINER_CONFIG_ERROR, f"the container cannot be set up: {pod.waiting_message}")
    if pod.waiting_reason in ("CrashLoopBackOff", "CreateContainerError", "RunContainerError"):
        return Fault(Reason.CRASH_LOOP, f"the container does not stay up: {failure(pod.ended, '').message if pod.ended else pod.waiting_message}")
    if pod.unschedulable:
        claim = re.search(r'persistentvolumeclaim "([^"]+)" not found', pod.unschedulable)
        if claim:
            return Fault(Reason.VOLUME_NOT_FOUND, f'PersistentVolumeClaim "{claim[1]}" does not exist in this namespace: create it, and it goes on by itself')
        return Fault(Reason.UNSCHEDULABLE, f"no node takes the pod: {pod.unschedulable}")
    return None


def result(ended: Ended | None) -> StepResult | None:
    """The document that a pod left behind; None when it left none (killed, crashed before it could)."""
    if ended is None:
        return None
    try:
        return StepResult.model_validate_json(ended.message)
    except ValidationError:
        return None


def _words(ended: Ended) -> str:
    found = result(ended)
    if found:
        return found.message
    tail = ended.message.strip().splitlines()[-1:] or [f"exit code {ended.exit_code}"]
    return f"{ended.reason or 'Error'} (exit code {ended.exit_code}): {tail[0][:500]}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_pod(pod: PodView) -> Failure | None:
    """How a pod failed as a whole, where its container says nothing: it never ran, or the node took it away. None: the container decides."""
    known = pod.ended is not None and pod.ended.reason != _UNKNOWN
    if pod.phase != "Failed" or (known and not (pod.verdict.startswith(_EVICTED) and result(pod.ended) is None)):
        return None
    code = pod.ended.exit_code if pod.ended else None
    if pod.verdict.startswith(_EVICTED):
        message = f"node {pod.node} took pod {pod.name} away: {pod.verdict}. Raise what it names (spec.resources), or give the pod another node"
        return Failure(Reason.POD_FAILED, message, code, terminal=False, counts=True)
    if pod.foreign:
        message = f"pod {pod.name} failed before its own container ran: {pod.foreign}, which somebody has injected"
        return Failure(Reason.POD_FAILED, message, code, terminal=False, counts=True)
    if pod.verdict and pod.ended is None:
        why = f"node {pod.node or '(none)'} refused it: {pod.verdict}"
    else:
        why = "it was deleted before its container ran" if pod.ended is None else "it was deleted before its container ran, or the node started anew"
    # Nobody's failure.
    return Failure(Reason.POD_LOST, f"pod {pod.name} is lost: {why}", code, terminal=False, counts=False)


def failure(ended: Ended | None, job_message: str) -> Failure:
    """Classify an attempt that failed, by the exit codes of the contract."""
    if ended is None:
        return Failure(Reason.POD_FAILED, job_message or "the pod is gone and left no result", None, terminal=False, counts=True)
    found, code = result(ended), ended.exit_code
    # The kernel may take the training process alone; its supervisor then sees a crash, and the kubelet says what it was.
    if ended.reason == "OOMKilled" and (found is None or found.reason == StepReason.TRAINING_CRASHED):
        message = "the container used more memory than its limit and was killed: raise spec.resources.memory"
        return Failure(Reason.HOST_OUT_OF_MEMORY, message, code, terminal=False, counts=True)
    if found is None:
        if code > _SIGNALED:
            message = f"the container was killed by {_signal(code - _SIGNALED)}: the node ran out of memory, or the time to end was over. "
            message += "Look at the node's events (kubectl describe node)"
            return Failure(Reason.KILLED, message, code, terminal=False, counts=True)
        return Failure(Reason.POD_FAILED, _words(ended), code, terminal=False, counts=True)
    counts = code not in (Exit.STORAGE_UNAVAILABLE, Exit.INTERRUPTED)
    reason = found.reason if found.reason != StepReason.COMPLETED else Reason.POD_FAILED
    return Failure(reason, found.message, code, terminal=code in _TERMINAL, counts=counts)
