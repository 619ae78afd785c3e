"""What must hold at every moment. Each check hangs on the change that could break it, so that most events cost nothing."""

from dataclasses import dataclass, field

from finetune_operator import clock
from finetune_operator.names import FIELD_MANAGER, LABEL_JOB, LABEL_MANAGED_BY, LABEL_STEP, Step
from finetune_operator.reasons import Reason
from finetune_runtime.contract.result import Reason as StepReason

from .api import Api, Raw, controller_of, deleting
from .jobs import finished, terminal
from .kubelet import Container, Kubelets
from .process import Process
from .storage import Storage
from .world import ViolationError, World

# Words that Kubernetes and Kueue use in the model.
FOREIGN = {
    "EvictionByEvictionAPI", "DeletionByTaintManager", "DeletionByPodGC", "PreemptionByScheduler", "Pending", "Preempted", "Deactivated", "QuotaReserved",
    "WaitingForQuota", "Inadmissible", "Finished",
}  # fmt: skip
SLACK = 60.0  # seconds that a round may come late
WORDS = {*Reason, *StepReason, *FOREIGN}
CONDITION = {Step.PREPARE: "DataReady", Step.TRAIN: "Trained"}
Conditions = dict[str, Raw]


@dataclass(slots=True)
class History:
    """What is remembered of one FineTuneJob."""

    limit: int = 0  # largest retries.limit
    deadline: float = float("inf")  # smallest activeDeadlineSeconds: an edit may come a moment too late
    begun: int = 0  # round of the operator in which the last Job was made
    pods: int = 0
    committed: list[int] = field(default_factory=list)  # newest checkpoint when each training pod was made
    ended: dict[tuple[str, int], tuple[object, ...]] = field(default_factory=dict)


def conditions(raw: Raw) -> Conditions:
    """Conditions by type."""
    return {c["type"]: c for c in (raw.get("status") or {}).get("conditions") or ()}


def final(raw: Raw) -> bool:
    """Whether a FineTuneJob has ended."""
    return bool(conditions(raw).get("Succeeded", {}).get("status", "Unknown") != "Unknown")


def fail(invariant: str, message: str) -> None:
    """An invariant does not hold."""
    raise ViolationError(invariant, message)


class Invariants:
    """Watches the API server and the nodes."""

    def __init__(self, world: World, api: Api, storage: Storage, kubelets: Kubelets, process: Process) -> None:
        self._world, self._api, self._storage, self._kubelets, self._process = world, api, storage, kubelets, process
        self._history: dict[str, History] = {}
        self.meddled = float("-inf")  # when somebody last changed a child by hand
        api.listen("FineTuneJob", self._on_finetunejob)
        api.listen("Job", self._on_job)
        api.listen("Pod", self._on_pod)

    # A FineTuneJob's status

    def _on_finetunejob(self, change: str, raw: Raw, old: Raw | None) -> None:
        if change == "DELETED":
            return
        history = self._history.setdefault(raw["metadata"]["uid"], History())
        history.limit = max(history.limit, raw["spec"].get("retries", {}).get("limit", 3))
        history.deadline = min(history.deadline, raw["spec"].get("activeDeadlineSeconds") or float("inf"))
        if old is None or raw["status"] is old["status"]:
            return
        self._hit(raw)
        before, after = conditions(old), conditions(raw)
        self._conditions(before, after)
        self._facts(old["status"], raw["status"], before, after)
        self._truth(raw, history)
        if final(old):
            kept = ("phase", "reason", "attempt", "attempts", "failures", "completionTime", "artifact")
            if changed := [name for name in kept if old["status"].get(name) != raw["status"].get(name)]:
                fail("terminal stays terminal", f"{', '.join(changed)} changed after the end")
        elif final(raw) and history.begun == self._world.rounds:
            fail("nothing is begun by the round that ends a job", f"{raw['metadata']['name']} has ended and has a new Job")
        if after.get("Succeeded", {}).get("status") == "True":
            self._success(raw)
        if raw["status"].get("phase") == "Suspended":
            self._suspended(raw)
        for step, failures in (raw["status"].get("failures") or {}).items():
            if failures > history.limit + 1:
                fail("attempts within budget", f"{failures} failures of {step}, and retries.limit never was above {history.limit}")
        self._attempts(raw, history)

    def _conditions(self, before: Conditions, after: Conditions) -> None:
        for kind, new in after.items():
            if new["reason"] not in WORDS:
                fail("reasons", f"{kind} has the unknown reason {new['reason']}")
            old = before.get(kind)
            if old is None:
                continue
            # A flip within a second, or after a clock was set back, may bear the same time; without a flip it stays.
            if old["status"] == new["status"] and old["lastTransitionTime"] != new["lastTransitionTime"]:
                fail("lastTransitionTime", f"{kind} {old['status']} {old['lastTransitionTime']} -> {new['status']} {new['lastTransitionTime']}")
            if new.get("observedGeneration", 0) < old.get("observedGeneration", 0):
                fail("observedGeneration", f"{kind} goes back from generation {old['observedGeneration']} to {new.get('observedGeneration', 0)}")
        for kind in before:
            if kind not in after and kind not in {"Reconciling", "Stalled", "QuotaReserved"}:
                fail("conditions stay", f"{kind} is gone")

    def _facts(self, old: Raw, new: Raw, before: Conditions, after: Conditions) -> None:
        """What was recorded is not undone."""
        for name in ("startTime", "artifact"):
            if name in old and old[name] != new.get(name):
                fail("records stay", f"{name} changes from {old[name]} to {new.get(name)}")
        for name in ("attempt", "interruptions", "activeSeconds"):
            if new.get(name, 0) < old.get(name, 0):
                fail("records stay", f"{name} goes back from {old[name]} to {new.get(name, 0)}")
        for step, count in (old.get("failures") or {}).items():
            if (new.get("failures") or {}).get(step, 0) < count:
                fail("records stay", f"failures of {step} go back from {count}")
        for kind in ("DataReady", "Trained", "Deployed"):
            if before.get(kind, {}).get("status") == "True" and after.get(kind, {}).get("status") != "True" and kind != "Deployed":
                fail("records stay", f"{kind} was True")
        if "Reconciling" in after and ("Stalled" in after or after["Succeeded"]["status"] != "Unknown"):
            fail("kstatus", "Reconciling beside Stalled or after the end")

    def _truth(self, raw: Raw, history: History) -> None:
        """Numbers that the model knows better."""
        status, uid = raw["status"], raw["metadata"]["uid"]
        told, newest = (status.get("progress") or {}).get("checkpointStep", 0), self._storage.of(uid).checkpoint
        if told > newest:
            fail("numbers are true", f"checkpointStep is {told}, but the newest checkpoint is {newest}")
        if status.get("interruptions", 0) > max(0, history.pods - 1):
            fail("numbers are true", f"{status['interruptions']} interruptions with {history.pods} pods in all")
        if sum((status.get("failures") or {}).values()) > history.pods:
            fail("numbers are true", f"more failures than the {history.pods} pods there were")
        if final(raw):
            self._reason(raw, history)

    def _reason(self, raw: Raw, history: History) -> None:
        reason = raw["status"].get("reason")
        trains = conditions(raw).get("DataReady", {}).get("status") == "True"
        if reason == "NoProgress" and trains and (len(history.committed) < 3 or len(set(history.committed[-3:])) > 1):
            fail("numbers are true", f"NoProgress, but checkpoints went on: {history.committed}")
        if reason == "DeadlineExceeded":
            lived = self._process.now() - clock.seconds(raw["metadata"]["creationTimestamp"])
            if lived + self._process.error() < history.deadline:
                fail("numbers are true", f"DeadlineExceeded after {lived:.0f} s in all, activeDeadlineSeconds never was below {history.deadline:.0f}")

    def _success(self, raw: Raw) -> None:
        committed = self._storage.of(raw["metadata"]["uid"]).adapter
        told = ((raw["status"].get("artifact") or {}).get("adapter") or {}).get("manifestSha256", "")
        if not committed or committed != told:
            fail("success has an artefact", f"storage holds {committed or 'no adapter'}, the status says {told or 'nothing'}")

    def _deadline(self, raw: Raw) -> None:
        limit, since = raw["spec"].get("activeDeadlineSeconds"), raw["status"].get("activeSince")
        if limit and since and not final(raw) and not deleting(raw):
            used = raw["status"].get("activeSeconds", 0) + self._process.now() - clock.seconds(since)
            if used > limit + self._process.error() + SLACK:
                fail("a deadline ends a job", f"{raw['metadata']['name']} was active for {used:.0f} s, activeDeadlineSeconds is {limit}")

    def _suspended(self, raw: Raw) -> None:
        """Only a status that claims to be current is held to it, and only while nobody meddles with Jobs."""
        if raw["status"].get("observedGeneration") != raw["metadata"]["generation"] or self._world.now < self.meddled + 600:
            return
        if "activeSince" in raw["status"]:
            fail("suspension stops the clock", f"activeSince is {raw['status']['activeSince']} while the job is suspended")
        for pod in self.pods_of(raw):
            here = self._kubelets.containers.get(pod["metadata"]["uid"])
            if not terminal(pod) and not (here and not here.node.up):
                fail("suspended means nothing runs", f"pod {pod['metadata']['name']} is {pod['status'].get('phase')}")

    def _attempts(self, raw: Raw, history: History) -> None:
        for attempt in raw["status"].get("attempts") or ():
            if attempt.get("endedAt"):
                key = (attempt["step"], attempt["number"])
                ended = (attempt["endedAt"], attempt.get("reason"), attempt.get("exitCode"))
                before = history.ended.get(key, ended)
                history.ended[key] = ended
                # The last words of a deleted pod may arrive after it was given up: evidence beats absence.
                if before != ended and (before[1], ended[1]) != ("ResultLost", "Completed"):
                    fail("an ended attempt is history", f"{key}: {before} -> {ended}")

    def _hit(self, raw: Raw) -> None:
        status, hits = raw["status"], self._world.hits
        hits.add(f"phase {status.get('phase')}")
        hits.add(f"reason {status.get('reason')}")
        if self._world.trace is not None:
            self._world.note("status", f"{raw['metadata']['name']} {status.get('phase')} {status.get('reason')}: {status.get('message', '')[:110]}")

    # Jobs and pods

    def owner(self, child: Raw) -> Raw | None:
        """The FineTuneJob that a Job belongs to, while it exists."""
        reference = controller_of(child)
        found = self._api.get("FineTuneJob", (child["metadata"]["namespace"], reference["name"])) if reference and reference["kind"] == "FineTuneJob" else None
        return found if found and reference and found["metadata"]["uid"] == reference["uid"] else None

    def pods_of(self, raw: Raw) -> list[Raw]:
        """Pods of all Jobs of a FineTuneJob, whether these Jobs still exist or not."""
        name = raw["metadata"]["name"]
        labelled = [p for p in self._api.all("Pod") if (p["metadata"].get("labels") or {}).get(LABEL_JOB) == name]
        jobs = {j["metadata"]["uid"] for j in self._api.owned(raw["metadata"]["uid"], "Job")}
        return [p for p in labelled if (o := controller_of(p)) and o["uid"] in jobs]

    def _on_job(self, change: str, job: Raw, _: Raw | None) -> None:
        raw = self.owner(job) if change == "ADDED" else None
        if raw is None:
            return
        if final(raw):
            fail("terminal stays terminal", f"Job {job['metadata']['name']} is created after the end")
        self._history[raw["metadata"]["uid"]].begun = self._world.rounds
        self._not_again(raw, job["metadata"].get("labels") or {}, f"Job {job['metadata']['name']} is created")

    def _on_pod(self, change: str, pod: Raw, _: Raw | None) -> None:
        reference = controller_of(pod)
        if change != "ADDED" or reference is None or reference["kind"] != "Job":
            return
        job = self._api.get("Job", (pod["metadata"]["namespace"], reference["name"]))
        raw = self.owner(job) if job else None
        if raw is None:
            return
        history = self._history[raw["metadata"]["uid"]]
        history.pods += 1
        if pod["metadata"]["labels"].get(LABEL_STEP) == Step.TRAIN:
            history.committed.append(self._storage.of(raw["metadata"]["uid"]).checkpoint)
        self._not_again(raw, pod["metadata"]["labels"], f"pod {pod['metadata']['name']} is created")
        if raw["status"].get("phase") == "Suspended":
            self._suspended(raw)

    def _not_again(self, raw: Raw, labels: Raw, what: str) -> None:
        step = labels.get(LABEL_STEP)
        if step in set(Step) and conditions(raw).get(CONDITION[Step(step)], {}).get("status") == "True":
            fail("done work is not done again", f"{what}, but {CONDITION[Step(step)]} is True")

    def begun(self, pod: Raw, uid: str, start: int) -> None:
        """A training begins."""
        job = self._api.get("Job", (pod["metadata"]["namespace"], (controller_of(pod) or {}).get("name", "")))
        raw = self.owner(job) if job else None
        newest = self._storage.of(raw["metadata"]["uid"] if raw else uid).checkpoint
        if start != newest:
            fail("trained work is not repeated", f"pod {pod['metadata']['name']} starts from step {start}, step {newest} is committed")
        if raw and raw["metadata"]["uid"] != uid:
            fail("a job trains for itself", f"pod {pod['metadata']['name']} of {raw['metadata']['uid']} trains for {uid}")
        for other in self._kubelets.containers.values():
            if other.uid != pod["metadata"]["uid"] and self._trains(other, uid):
                fail("one trainer", f"pods {pod['metadata']['name']} and {other.key[1]} both train for {uid}")

    def _trains(self, here: Container, uid: str) -> bool:
        """Whether a container trains for a job, as far as anybody could know."""
        if not here.program or not here.program.trains or here.program.uid != uid or not here.node.up:
            return False
        pod = self._kubelets.find(here.uid)
        return pod is not None and not terminal(pod) and pod["metadata"].get("deletionGracePeriodSeconds") != 0

    # The end of a schedule

    def at_rest(self) -> None:
        """Nothing happens any more: what must be true now."""
        alive = {raw["metadata"]["uid"]: raw for raw in self._api.all("FineTuneJob")}
        for found in alive.values():
            self._deadline(found)
        for job in self._api.all("Job"):
            reference = controller_of(job)
            raw = alive.get(reference["uid"]) if reference else None
            if raw and final(raw) and not finished(job) and not deleting(job):
                fail("nothing runs after the end", f"Job {job['metadata']['name']} lives on")
        for kind in ("ConfigMap", "Job", "Pod", "Deployment", "Service"):
            for child in self._api.all(kind):
                ours = (child["metadata"].get("labels") or {}).get(LABEL_MANAGED_BY) == FIELD_MANAGER
                reference = controller_of(child)
                if ours and child["metadata"]["uid"] not in self._api.taken_over and (reference is None or reference["uid"] not in self._api.uids):
                    fail("no orphans", f"{kind} {child['metadata']['name']} has no owner")
