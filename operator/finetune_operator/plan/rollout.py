"""How one version of an endpoint replaces another: start, gate, switch, watch, roll back, retire.

Works on the record of versions; what has to be done for it follows from the record in plan.endpoint, so that a round that is cut short is
made up for by the next one.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from finetune_operator import clock
from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.build import config as build_config
from finetune_operator.observe import DeploymentView, JobView, PodView
from finetune_operator.reasons import Reason
from finetune_runtime.contract.evaluation import fault as fault_of

from . import canary, live, recreate
from .errand import Errand, Stand
from .faults import Fault, failure, refusal
from .gate import Gate, Verdict, evaluation, job_name, named, noted, recorded, rival, unanswered
from .merge import Merge, is_missing, merge
from .pods import crashed, crashes, why
from .types import EndpointState
from .versions import Question, Target, Versions

# Old pods stay for at least so long (seconds) after the traffic has moved: every proxy has to hear of it first.
SWITCH_SECONDS = 5.0
# Crashes of one pod after which a version that has never answered is given up.
MAX_RESTARTS = 5


@dataclass(slots=True)
class Rollout:
    """One look at an endpoint: what is seen, the record under construction, and what came out."""

    seen: EndpointState
    versions: Versions
    now: float
    progress: Fault = field(default_factory=lambda: Fault(Reason.UP_TO_DATE, ""))
    under_way: bool = False
    host: str | None = None  # Deployment that today's spec makes for all adapters; None: each version has its own
    held: bool = False  # the candidate's pods must not start yet
    merge: Merge | None = None  # of the candidate's adapter into its base, while that is not on record
    verdict: Verdict | None = None  # of the candidate's gate
    due: list[float] = field(default_factory=list)  # seconds after which to look again

    def deployment(self, version: str) -> DeploymentView | None:
        """Our Deployment of a version."""
        place = self.place(version)
        found = (d for d in self.seen.deployments if d.name == place and d.owner_uid == self.seen.owner.uid and not d.deleting)
        return next(found, None)

    @property
    def incumbent(self) -> VersionStatus | None:
        """The version that has the traffic, or where none has on record the one that may have it, by a round that was cut short."""
        return next(iter(self.versions.having("Current") or self.versions.having("Previous")), None)

    def place(self, version: str) -> str:
        """Name of the Deployment in whose pods a version is."""
        known = self.versions.find(version)
        return known.place if known else version

    def pods(self, version: str) -> list[PodView]:
        """Pods of a version that have not ended."""
        place = self.place(version)
        return [p for p in self.seen.pods if p.parent == place and p.alive]

    def wait(self, fault: Fault) -> None:
        """The candidate is on its way."""
        self.under_way, self.progress = True, fault

    def look_in(self, seconds: float | None) -> None:
        """Look again after so long; None: when something happens."""
        if seconds is not None:
            self.due.append(seconds)

    def age(self, version: VersionStatus) -> float:
        """Seconds since a version came into its role."""
        return self.now - clock.seconds(version.since) if version.since else 0.0


def wanted_replicas(rollout: Rollout, target: Target, verdict: Verdict | None) -> int:
    """Pods of a candidate: as many as the endpoint has. Where that is scaled to zero one for the gate to ask, and one to show that it answers before it
    takes the place of a version that does.
    """
    asked = target.asks and (verdict is None or verdict.gate is not Gate.OPEN)
    record, current = rollout.versions.find(target.name), rollout.versions.current
    unproven = current is not None and current.name != target.name and not (record and record.trusted)
    return max(rollout.seen.spec.replicas, int(asked or unproven))


def roll(rollout: Rollout, target: Target) -> None:
    """Bring the target nearer to the traffic."""
    versions, spec = rollout.versions, rollout.seen.spec
    if drop_candidates(rollout, keep=target.name):
        rollout.wait(Fault(Reason.STARTING, f"version {target.name} is next"))
        rollout.due.append(1.0)  # one step at a time
        return
    known = versions.find(target.name)
    if known and known.role == "Current":
        rollout.progress = Fault(Reason.UP_TO_DATE, f"version {known.name} has the traffic")
        return
    if failed := target.given_up:
        rollout.progress = Fault(failed.reason or Reason.CRASH_LOOP, failed.message or "")
        return
    if bad := next((text for gate in target.gates if (text := fault_of(gate))), ""):
        drop_candidates(rollout)  # nobody may keep a share, or another version from its pods, whom nothing judges any more
        rollout.progress = Fault(Reason.INVALID_SPEC, f"the gate of version {target.name} cannot be read: {bad}")
        return
    candidate = _candidate(rollout, target, known)
    live.settle(rollout)
    if rollout.seen.refused:
        _refused(rollout, candidate, target)
        return
    verdict = rollout.verdict = recorded(target, candidate)
    if verdict and verdict.gate is Gate.CLOSED:
        _close(rollout, candidate, target, verdict)
        return
    if is_missing(spec, candidate) and rollout.deployment(candidate.name) is None:
        _merging(rollout, candidate, target)
        return
    if fault := recreate.waits(rollout, candidate):
        rollout.look_in(None if rollout.deployment(candidate.name) else 1.0)
        _in_time(rollout, candidate, target, fault)
        return
    _bring(rollout, candidate, target, verdict)


def _refused(rollout: Rollout, candidate: VersionStatus, target: Target) -> None:
    """Objects of the candidate cannot be made."""
    rollout.held = True
    rollout.due.append(30.0)
    if recreate.has_made_room(rollout) and rollout.seen.spec.auto_rollback and rollout.seen.spec.replicas:  # users get their answers back
        words = f"the API server refuses {'; '.join(rollout.seen.refused.values())}. Correct what it names, and name the version in spec.version"
        _reject(rollout, candidate, target, Fault(Reason.REFUSED, f"version {candidate.name} cannot take the place of the old one: {words}"))
    else:
        _in_time(rollout, candidate, target, Fault(Reason.REFUSED, f"version {candidate.name}: {refusal(rollout.seen.refused.values())}"))


def _bring(rollout: Rollout, candidate: VersionStatus, target: Target, verdict: Verdict | None) -> None:
    """Nothing keeps the candidate's pods from starting: up, through the gate, to its share, to the traffic."""
    if (fault := canary.judge(rollout, candidate) or live.judge(rollout, candidate)) and rollout.seen.spec.auto_rollback:
        _reject(rollout, candidate, target, fault)
        return
    candidate = canary.keep(rollout, candidate, passes=verdict is not None and verdict.gate is Gate.OPEN)
    up = _is_up(rollout, target, verdict)
    if not up and not (verdict is None and _is_asked(rollout, candidate, target)):
        if candidate.step:
            rollout.wait(fault or why(rollout, candidate.name))
        else:
            _starting(rollout, candidate, target)
        return
    if verdict is None:
        candidate, verdict = _ask(rollout, candidate, target)
    rollout.verdict = verdict
    if verdict.gate is Gate.OPEN and not up:
        rollout.wait(why(rollout, candidate.name))
    elif verdict.gate is Gate.OPEN:
        _let_through(rollout, candidate, verdict)
    elif verdict.gate in (Gate.CLOSED, Gate.FAILED):
        _close(rollout, candidate, target, verdict)
    else:
        _wait_for_answers(rollout, candidate, target, verdict)


def _let_through(rollout: Rollout, candidate: VersionStatus, verdict: Verdict) -> None:
    """The candidate has answered, and nothing speaks against it."""
    passed = noted(verdict.question, candidate, verdict.result) if verdict.result and verdict.question else {}
    if candidate.host and not candidate.public:
        live.appoint(rollout, candidate.model_copy(update=passed))
        rollout.wait(Fault(Reason.ROLLING_OUT, f"version {candidate.name}: its pods are told to serve it"))
        rollout.due.append(live.LOOK_SECONDS)
    elif canary.advance(rollout, candidate, **passed):
        _switch(rollout, candidate, passed)


def _wait_for_answers(rollout: Rollout, candidate: VersionStatus, target: Target, verdict: Verdict) -> None:
    """The evaluation is under way, or its pod cannot start: then for as long as the version had to answer."""
    if verdict.gate is Gate.ASK:
        candidate = rollout.versions.again(candidate)
    fault = Fault(verdict.reason or Reason.EVALUATING, f"version {candidate.name}: {verdict.message or 'its evaluation is being started'}")
    if fault.reason == Reason.EVALUATING:
        rollout.wait(fault)
        rollout.look_in(verdict.errand.look_in if verdict.errand else None)
    else:
        _in_time(rollout, candidate, target, fault, verdict.errand)


def watch(rollout: Rollout, asked: str) -> bool:
    """Take the traffic back from a version whose pods crash soon after it got it; tells whether. `asked`: digest of the wish that brought it there."""
    versions, spec = rollout.versions, rollout.seen.spec
    current, previous = versions.current, versions.having("Previous")
    if current is None or not previous or not spec.auto_rollback:
        return False
    left = spec.strategy.watch_seconds - rollout.age(current)
    if left <= 0:
        return False
    rollout.due.append(left)
    pods, there, view = rollout.pods(current.name), rollout.deployment(current.name), rollout.deployment(previous[0].name)
    can_answer = bool(view and view.ready)
    if live.shares(current, previous[0]):
        return _take_back(rollout, asked, live.crashed(current, pods, alone=not can_answer))
    crash = crashes(pods, restarts=1)
    if crash is None and can_answer and there and not there.ready:
        crash = crashed(pods)  # nobody is answered while the kubelet tries again, and the old pods are still there
    return _take_back(rollout, asked, crash if spec.strategy.type == "Recreate" or can_answer else None)


def _take_back(rollout: Rollout, asked: str, crash: Fault | None) -> bool:
    versions, current, previous = rollout.versions, rollout.versions.current, rollout.versions.having("Previous")
    if crash is None or current is None:
        return False
    message = f"version {current.name} got the traffic and crashed, version {previous[0].name} has it again: {crash.message}"
    versions.move(current, "Rejected", crash.reason, message, served=True, asked=asked)
    versions.move(previous[0], "Current", served=True)
    return True


def retire(rollout: Rollout) -> None:
    """Let go of versions that had the traffic once the one that has it now has stood its time."""
    spec, current = rollout.seen.spec, rollout.versions.current
    previous = rollout.versions.having("Previous")
    if current is None:
        # The last of them may still have the traffic: it stands for one on record.
        for version in previous[spec.keep_previous + 1 :]:
            rollout.versions.move(version, "Retired", served=True)
        return
    age = rollout.age(current)
    waits = [seconds - age for seconds in (SWITCH_SECONDS, spec.strategy.watch_seconds) if seconds > age]
    if previous and waits:
        rollout.due.append(min(waits))
    if age < SWITCH_SECONDS:
        return
    # While the one is watched the other stands by; those before it need not, however fast versions follow each other.
    keep = max(1, spec.keep_previous) if age < spec.strategy.watch_seconds else spec.keep_previous
    for version in previous[keep:]:
        rollout.versions.move(version, "Retired", served=True)


def drop_candidates(rollout: Rollout, keep: str = "") -> bool:
    """Another version is wanted than the one that was on its way; tells whether that one has the traffic already."""
    versions, moved = rollout.versions, False
    for other in versions.having("Candidate"):
        if other.name == keep:
            continue
        if live.stands(rollout, other):
            _switch(rollout, other, {})
            moved = True
        elif live.may_have(rollout, other) or (other.trusted and _is_way_back(rollout, other)):
            versions.move(other, "Previous", served=True)
        elif other.trusted:  # it had the traffic once, and what has pods that answer is the better way back
            message = "another version was asked for before this one's pods answered; spec.version brings it back"
            versions.move(other, "Retired", Reason.SUPERSEDED, message, served=True)
        else:
            versions.move(other, "Retired", Reason.SUPERSEDED, "another version was proposed before this one had the traffic")
    return moved


def _is_way_back(rollout: Rollout, version: VersionStatus) -> bool:
    """Whether the traffic can go to a version's pods at once."""
    view = rollout.deployment(version.name)
    return version.host is not None or bool(view and view.ready)


def _candidate(rollout: Rollout, target: Target, known: VersionStatus | None) -> VersionStatus:
    """The target's record."""
    versions, record = rollout.versions, target.record(known, rollout.versions.current)
    if known is None:  # today's spec makes it; the name is a part of what makes a version
        record = record.model_copy(update={"own_name": build_config.own_name(rollout.seen.owner.name, rollout.seen.spec)})
    if record.role in ("Rejected", "Retired"):
        record = record.model_copy(update={"merged": None})  # a look whether it is still in storage takes seconds
    return versions.put(record) if record.role == "Candidate" else versions.move(record, "Candidate")


def _merging(rollout: Rollout, candidate: VersionStatus, target: Target) -> None:
    """Nothing of the candidate starts before its adapter is merged, and that is on record: what its pods read follows from the record."""
    rollout.held = True
    found = rollout.merge = merge(rollout.seen, candidate, rollout.now)
    if found.stand is Stand.FAILED:
        _reject(rollout, candidate, target, found.fault)
        return
    if found.stand is Stand.DONE:
        rollout.wait(found.fault)
        rollout.versions.again(candidate, merged=found.merged)  # the time to answer counts from here
        rollout.due.append(1.0)
    elif found.fault.reason == Reason.MERGING:
        rollout.wait(found.fault)
        rollout.look_in(found.errand.look_in if found.errand else None)
    else:  # its pod cannot start
        _in_time(rollout, candidate, target, found.fault, found.errand)


def _in_time(rollout: Rollout, candidate: VersionStatus, target: Target, fault: Fault, errand: Errand | None = None) -> None:
    """The candidate, or an errand for it, waits for something that may not come: for as long as it has to answer."""
    strategy = rollout.seen.spec.strategy
    rollout.wait(fault)
    if not rollout.seen.spec.auto_rollback:
        return
    since = clock.seconds(max(candidate.since, candidate.step_since or ""))  # one that gave its share back starts anew
    left = strategy.timeout_seconds - (rollout.now - max(since, errand.since if errand else 0.0))
    if left > 0:
        rollout.due.append(left)
        return
    message = f"version {candidate.name} was not ready for users within {strategy.timeout_seconds} s (spec.strategy.timeoutSeconds): {fault.message}"
    _reject(rollout, candidate, target, Fault(Reason.NOT_READY_IN_TIME, message))


def _is_up(rollout: Rollout, target: Target, verdict: Verdict | None) -> bool:
    """Whether the target can take the traffic: all its pods have answered. Of a version that had it before one is enough, or a rollback takes long."""
    record, view = rollout.versions.find(target.name), rollout.deployment(target.name)
    wanted = wanted_replicas(rollout, target, verdict)
    if wanted == 0:
        return True
    there = record is not None and any(live.shares(record, other) for other in rollout.versions.having("Current"))
    enough = 1 if there or (record and record.trusted and not canary.by_steps(rollout)) else wanted
    if view is None or not view.current or view.ready < enough:
        return False
    return record is None or record.host is None or live.lacks(rollout, record) is None


def _starting(rollout: Rollout, candidate: VersionStatus, target: Target) -> None:
    """The candidate does not answer yet. Is it worth waiting for?"""
    pods = rollout.pods(candidate.name)
    fault = why(rollout, candidate.name)
    if candidate.host and any(p.ready for p in pods) and (lacks := live.lacks(rollout, candidate)):
        fault = lacks
        rollout.due.append(live.LOOK_SECONDS)
    if (refused := live.refused(rollout, candidate)) and rollout.seen.spec.auto_rollback:
        _reject(rollout, candidate, target, refused)
        return
    fault, pods = refused or fault, live.since(candidate, pods)
    ends = (failure(p.ended, "") for p in pods if p.ended and p.ended.exit_code)
    hopeless = next((Fault(end.reason, end.message) for end in ends if end.terminal), None)
    if rollout.seen.spec.auto_rollback and (crash := hopeless or crashes(pods, restarts=MAX_RESTARTS)):
        reason = Reason.FETCH_FAILED if hopeless else crash.reason
        _reject(rollout, candidate, target, Fault(reason, f"version {candidate.name} cannot be served: {crash.message}"))
    else:
        _in_time(rollout, candidate, target, fault)


def compared(rollout: Rollout, target: Target) -> VersionStatus | None:
    """The version with the traffic, while a question of the candidate's gate needs its answers. With Recreate it has no pods, which keeps the gate closed."""
    candidate, current = rollout.versions.find(target.name), rollout.versions.current
    questions = unanswered(target, candidate) if candidate and candidate.role == "Candidate" else []
    other = rival(questions[0], current) if questions else None
    return other if other and candidate and not recreate.takes_the_place(rollout, candidate) else None


def _is_asked(rollout: Rollout, candidate: VersionStatus, target: Target) -> bool:
    """Whether an evaluation goes on: pods that come and go beside one that answers are no reason to give it up and to ask anew."""
    view = rollout.deployment(candidate.name)
    answers = view and view.ready and (candidate.host is None or live.lacks(rollout, candidate) is None)
    return bool(answers) and _evaluation(rollout, candidate, unanswered(target, candidate)[0]) is not None


def _evaluation(rollout: Rollout, candidate: VersionStatus, question: Question) -> JobView | None:
    """The Job that asks a question."""
    name = job_name(rollout.seen.owner.name, candidate.name, question, rollout.versions.current)
    return next((j for j in rollout.seen.jobs if j.name == name and j.owner_uid == rollout.seen.owner.uid), None)


def _ask(rollout: Rollout, candidate: VersionStatus, target: Target) -> tuple[VersionStatus, Verdict]:
    """The first question without an answer, one at a time. What has passed is noted, and the next one is asked in the next round."""
    question = unanswered(target, candidate)[0]
    job, other = _evaluation(rollout, candidate, question), compared(rollout, target)
    if job is None and other and not canary.answers(rollout, other):
        fault = why(rollout, other.name)
        message = f"it is compared with the version that has the traffic as soon as that answers: {fault.message}"
        return candidate, Verdict(Gate.WAIT, fault.reason, message, question=question)
    found = evaluation(job, rollout.seen.pods, rollout.now)
    verdict = replace(found, message=named(found.message, question, target) if found.message else "", question=question)
    if verdict.gate is not Gate.OPEN:
        return candidate, verdict
    candidate = rollout.versions.again(candidate, **noted(question, candidate, verdict.result))  # it has answered: its time to do so counts anew
    if unanswered(target, candidate):
        return candidate, Verdict(Gate.NEXT, Reason.EVALUATING, "the next one of its adapters is asked")
    return candidate, recorded(target, candidate) or verdict


def _reject(rollout: Rollout, candidate: VersionStatus, target: Target, fault: Fault, **fields: Any) -> None:
    rollout.versions.move(candidate, "Rejected", fault.reason, fault.message, asked=target.asked, **fields)
    rollout.under_way, rollout.progress = False, fault


def _close(rollout: Rollout, candidate: VersionStatus, target: Target, verdict: Verdict) -> None:
    fault = Fault(verdict.reason, f"version {candidate.name} gets no traffic: {verdict.message}")
    _reject(rollout, candidate, target, fault, **(noted(verdict.question, candidate, verdict.result) if verdict.question else {}))


def _switch(rollout: Rollout, candidate: VersionStatus, passed: dict[str, Any]) -> None:
    versions, current = rollout.versions, rollout.versions.current
    if current:
        versions.move(current, "Previous", served=True)
    versions.move(candidate, "Current", served=True, **passed)
    rollout.under_way, rollout.progress = False, Fault(Reason.UP_TO_DATE, f"version {candidate.name} has the traffic")
