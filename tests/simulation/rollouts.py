"""What must hold of endpoints at every moment: which version gets the traffic, which pods stay, and how the record of versions changes.

An operator acts on what it saw a moment ago. What it may not do is therefore judged by all specs that there were in that moment.
"""

from typing import TYPE_CHECKING

from finetune_operator import clock
from finetune_operator.names import EVALUATE, LABEL_ENDPOINT, LABEL_STEP, LABEL_VERSION, MERGE, evaluation_job
from finetune_operator.plan.versions import HISTORY
from finetune_runtime.contract.config import EvaluateConfig

from .adapters import Names, recorded, sha, wanted
from .api import Api, Raw, controller_of, deleting, key_of
from .invariants import fail
from .jobs import finished
from .kubelet import config_of
from .merging import check_job
from .process import Process
from .remembered import Fitness, History, canonical, gates_of, place_of, versions_of
from .serving import asked_of, opens, place_at
from .staying import answers
from .world import World

if TYPE_CHECKING:
    from .faults import Weather

# From one look to the next. A version comes back by being a candidate again, also when that takes no time.
ROLES: dict[str, tuple[str, ...]] = {
    "": ("Candidate", "Current", "Rejected"),
    "Candidate": ("Current", "Rejected", "Retired", "Previous"),
    "Current": ("Previous", "Rejected"),
    "Previous": ("Candidate", "Current", "Rejected", "Retired"),
    "Rejected": ("Candidate", "Current", ""),
    "Retired": ("Candidate", "Current", "Rejected", ""),
}
HEALED = 700.0  # seconds after which what somebody edited by hand has been put right, or is looked at again
QUICKLY = 60.0  # seconds in which an operator that nothing holds up has reacted


class Rollouts:
    """Watches endpoints and their versions."""

    def __init__(self, world: World, api: Api, conditions: "Weather", process: Process) -> None:
        self._world, self._api, self._weather, self._process = world, api, conditions, process
        self._history: dict[str, History] = {}
        self._fitness: dict[str, Fitness] = {}
        self._interviews: dict[str, tuple[str, str]] = {}  # pods that ask, by UID: their name, and UID of their endpoint
        self.meddled = float("-inf")  # when somebody last changed a child by hand
        self.names = Names(world, api)
        self.deleted: set[str] = set()  # Deployments of versions and Jobs of evaluations that somebody has deleted
        api.listen("ModelEndpoint", self._on_endpoint)
        api.listen("Service", self._on_service)
        api.listen("Deployment", self._on_deployment)
        api.listen("Pod", self._on_pod)
        api.listen("Job", self._on_job)

    # What the operator may have seen

    def moment(self) -> float:
        """Seconds that may lie between the operator's look at the cluster and what it does: it asks some twenty times."""
        return 5.0 + 40.0 * self._weather.latency

    def _specs(self, raw: Raw, moment: float) -> list[Raw]:
        """Specs that an endpoint has had within the last moment."""
        specs = self._history[raw["metadata"]["uid"]].specs
        begun = max((i for i, (since, _) in enumerate(specs) if since <= self._world.now - moment), default=0)
        return [spec for _, spec in specs[begun:]]

    def recent(self, raw: Raw) -> list[Raw]:
        """Specs by one of which the operator acts now."""
        return self._specs(raw, self._seen())

    def _of(self, version: str) -> Fitness:
        return self._fitness.setdefault(version, Fitness())

    def left_alone(self) -> bool:
        """Whether what somebody did by hand is put right by now, by a process that had the time to do so."""
        never = self.meddled == float("-inf")
        return never or self._world.now > max(self.meddled, self._process.since) + HEALED

    # The record

    def _on_endpoint(self, change: str, raw: Raw, old: Raw | None) -> None:
        if change == "DELETED":
            for version in [v for v in self._fitness if v.startswith(f"{raw['metadata']['name']}-")]:
                del self._fitness[version]
            return
        history = self._history.setdefault(raw["metadata"]["uid"], History())
        if old is None or raw["spec"] is not old["spec"]:
            history.specs.append((self._world.now, raw["spec"]))
        if old is not None and raw["status"] is not old["status"]:
            self._record(raw, old, history)

    def _record(self, raw: Raw, old: Raw, history: History) -> None:
        before, after = versions_of(old), versions_of(raw)
        name, self_ = raw["metadata"]["name"], self._world
        for condition in raw["status"].get("conditions") or ():
            self_.hits.add(f"endpoint {condition['type']}={condition['status']} {condition['reason']}")
        if self_.trace is not None:
            shown = " ".join(f"{v['name'][-8:]}={v['role']}" for v in after.values())
            progress: Raw = next((c for c in raw["status"].get("conditions") or () if c["type"] == "Progressing"), {})
            self_.note("status", f"{name} {raw['status'].get('reason')}: {shown}; {progress.get('reason')} {progress.get('message', '')[:90]}")
        for role in ("Current", "Candidate"):
            if len(found := [v for v in after.values() if v["role"] == role]) > 1:
                fail("roles change along their ways", f"{len(found)} versions of {name} are {role}")
        for version in {**before, **after}:
            was, now = (versions.get(version, {}).get("role", "") for versions in (before, after))
            if was != now:
                self_.hits.add(f"version {was or 'new'} -> {now or 'forgotten'}")
                gone = place_of(before.get(version) or after[version]) in self.deleted
                written_off = (was, now) == ("Current", "Retired") and gone
                # Of many that retire at once only the last ones stay on record.
                pushed_out = (was, now) == ("Previous", "") and sum(v["role"] in ("Rejected", "Retired") for v in after.values()) >= HISTORY
                if now not in ROLES[was] and not written_off and not pushed_out:
                    fail("roles change along their ways", f"{version} of {name}: {was or 'new'} -> {now or 'forgotten'}")
                if (was, now) == ("Previous", "Retired") and not gone and raw["metadata"]["namespace"] not in self._api.terminating:
                    self._let_go(raw, version, after)
        self._true(raw, after, before, history)

    def _let_go(self, raw: Raw, version: str, after: dict[str, Raw]) -> None:
        """A version that had the traffic loses its pods."""
        kept = sum(v["role"] == "Previous" for v in after.values())
        wanted = min(spec.get("keepPrevious", 0) for spec in self._specs(raw, self._seen()))
        if kept < wanted:
            fail("rollback stays possible", f"{version} is retired, {kept} previous versions are left, and keepPrevious is {wanted}")

    def _seen(self) -> float:
        """Seconds by which the operator's newest view of a spec may be old."""
        return self.moment() + 300.0 * bool(self._weather.storm)

    def _true(self, raw: Raw, after: dict[str, Raw], before: dict[str, Raw], history: History) -> None:
        """The record says Current of the version that the Service selects."""
        current = next((v for v, r in after.items() if r["role"] == "Current"), "")
        was = next((v for v, r in before.items() if r["role"] == "Current"), "")
        selected = self.selected(raw)
        if current and current != was and place_of(after[current]) != selected and self.left_alone():
            fail("the record is true", f"{current} is recorded as Current, and the Service selects {selected or 'nothing'}")
        if current:
            history.served.update((current, place_of(after[current])))
            history.adapters.update(map(sha, recorded(after[current]).values()))
        for version, record in after.items():
            if place := history.compared.get(version):
                self._is_compared(raw, version, place, before, after)
            if record.get("public") and not before.get(version, {}).get("public"):
                self._is_public(raw, record, history)

    @staticmethod
    def _is_compared(endpoint: Raw, version: str, place: str, before: dict[str, Raw], after: dict[str, Raw]) -> None:
        """What becomes known of a comparison was made with the version that has the traffic, or had it until this version got it."""

        def known(records: dict[str, Raw]) -> bool:
            return any((found.get("evaluation") or {}).get("passed") for found in recorded(records[version]).values()) if version in records else False

        current = [place_of(record) for record in before.values() if record["role"] == "Current"]
        if known(after) and not known(before) and current and place not in current:
            fail("a comparison is with what users get", f"{version} of {endpoint['metadata']['name']} was compared with {place}, and users get {current[0]}")

    def _is_public(self, endpoint: Raw, record: Raw, history: History) -> None:
        """The pods of a host serve a version to users as soon as the traffic comes to them."""
        manner, specs = self.names.of(place_of(record)).manner, self._specs(endpoint, self._seen())
        for model, adapter in recorded(record).items():
            if sha(adapter) not in history.adapters | history.public and not any(self._lets(endpoint, spec, manner, sha(adapter)) for spec in specs):
                fail("traffic goes to what has passed the gate", f"{model or 'its own name'} of {record['name']} is public, and has not passed the gate")
            history.public.add(sha(adapter))

    # Traffic

    def _on_service(self, change: str, raw: Raw, old: Raw | None) -> None:
        if change == "DELETED" or not self._process.cluster.acting or LABEL_VERSION in (raw["metadata"].get("labels") or {}):
            return
        endpoint = self._api.get("ModelEndpoint", key_of(raw))
        to, before = (str(r["spec"]["selector"].get(LABEL_VERSION, "")) if r else "" for r in (raw, old))
        if endpoint is None or to == before or (controller_of(raw) or {"uid": ""})["uid"] != endpoint["metadata"]["uid"]:
            return
        current = [place_of(record) for record in versions_of(endpoint).values() if record["role"] == "Current"]
        if [to] != current:  # or it is only put where it belongs
            self._has_answered(endpoint, to)
            self._has_passed(endpoint, to, before)
        known = before in self._history[endpoint["metadata"]["uid"]].served  # or a crash came between the traffic and the record of it
        back = self._is_previous(endpoint, to) and self._of(before).crashed
        if known and self.left_alone() and not back:
            self.names.kept(endpoint, self._specs(endpoint, self._seen()), before, to)
        if known and self.left_alone() and self._promised(endpoint) and self._of(before).answering and self.silent(to):
            fail("an endpoint keeps answering", f"traffic moves from {before}, which answers, to {to}, of which no pod does")

    @staticmethod
    def _is_previous(endpoint: Raw, place: str) -> bool:
        return any(record["role"] == "Previous" and place_of(record) == place for record in versions_of(endpoint).values())

    def _promised(self, endpoint: Raw) -> bool:
        """Whether somebody is to answer all the time."""
        return all(spec.get("replicas", 1) and spec["strategy"]["type"] != "Recreate" for spec in self._specs(endpoint, self._seen()))

    def silent(self, version: str) -> bool:
        """Whether no pod of a version has answered for longer than the operator may not know of."""
        found = self._of(version)
        return not found.answering and found.last < self._world.now - self.moment()

    def wavered(self, version: str) -> bool:
        """Whether no pod of a version answers, or none did within the time for which the operator may not know better."""
        found = self._of(version)
        return not found.answering or max(found.last, found.since) >= self._world.now - self.moment()

    def may_have(self, endpoint: Raw, version: str, current: str) -> None:
        """A version gets requests for the first time; `current` has them until now."""
        self._has_answered(endpoint, version)
        self._has_passed(endpoint, version, current)

    def _has_answered(self, endpoint: Raw, version: str) -> None:
        specs, found = self._specs(endpoint, self._seen()), self._of(version)
        trusted = version in self._history[endpoint["metadata"]["uid"]].served
        wanted = min(spec.get("replicas", 1) for spec in specs)
        if found.most < (min(1, wanted) if trusted else wanted):
            fail("traffic goes to what has answered", f"{version} gets the traffic; of {wanted} pods that are to answer at most {found.most} ever did")

    def _has_passed(self, endpoint: Raw, version: str, before: str) -> None:
        """Some spec of the last moment lets the version through."""
        was, now = self.names.of(before), self.names.of(version)
        if self._is_previous(endpoint, version) and self._of(before).crashed:
            return
        specs = self._specs(endpoint, self._seen())
        for model, adapter in now.models.items():
            same = now.manner == was.manner and was.models.get(model) == adapter  # it is served like that already
            if not same and not any(self._lets(endpoint, spec, now.manner, adapter) for spec in specs):
                fail("traffic goes to what has passed the gate", f"{version} gets the traffic, and {model} has not passed the gate")

    def _lets(self, endpoint: Raw, spec: Raw, manner: str, adapter: str) -> bool:
        history, pin = self._history[endpoint["metadata"]["uid"]], spec.get("version")
        named = {sha(a) for v in endpoint["status"].get("versions") or () if pin in (v["name"], v.get("job")) for a in recorded(v).values()}
        if pin and adapter in named & (history.adapters | history.public):
            return True  # also where it is made anew, by today's spec
        gates, loss = gates_of(spec, adapter), self._loss(spec, adapter, history)
        if not all(opens(gate.model_copy(update={"prompts": [], "prompts_from": None}), loss, 0) for gate in gates):
            return False
        return not any(gate.asks for gate in gates) or (manner, adapter, canonical(gates)) in history.passed

    @staticmethod
    def _loss(spec: Raw, adapter: str, history: History) -> str | None:
        """The evaluation loss that is known of an adapter: as it is proposed, or as it was when it got the traffic and until another one is proposed."""
        specs = (spec, *(earlier for _, earlier in reversed(history.specs)))
        told = next((entry for each in specs for entry in wanted(each).values() if sha(entry) == adapter), None)
        return told.get("evalLoss") if told else None

    # Adapters that change in pods with traffic

    def acting(self) -> bool:
        """Whether what happens now is the operator's doing."""
        return self._process.cluster.acting

    def was_served(self, adapter: str) -> bool:
        """Whether an adapter has had traffic."""
        return any(adapter in history.adapters for history in self._history.values())

    def may_be_public(self, endpoint: Raw, host: str, fresh: dict[str, str]) -> None:
        """Pods that have the traffic are told to serve adapters under names that users ask."""
        specs, manner, history = self._specs(endpoint, self._seen()), self.names.of(host).manner, self._history[endpoint["metadata"]["uid"]]
        now = next((record for record in versions_of(endpoint).values() if record["role"] == "Current"), {})
        had = set(map(sha, recorded(now).values()))
        for model, adapter in fresh.items():  # what has the traffic on record comes back when its successor is overtaken on the way
            back = adapter in history.adapters and (self._of(host).crashed or adapter in had)
            if not back and not any(self._lets(endpoint, spec, manner, adapter) for spec in specs):
                fail("traffic goes to what has passed the gate", f"{model} of {host} is given to users, and has not passed the gate")

    def keeps_names(self, endpoint: Raw, host: str, before: dict[str, str], after: dict[str, str]) -> None:
        """And none is gone that a user wants. What pods were told and what is not on record yet goes when the gate is closed meanwhile."""
        current: Raw = next((v for v in versions_of(endpoint).values() if v["role"] == "Current"), {})
        own = endpoint["spec"].get("servedName") or endpoint["metadata"]["name"]
        on_record = {name or own for name in recorded(current)} if current else set()
        before = {name: sha for name, sha in before.items() if name in on_record}
        if not self._of(host).crashed:
            self.names.none_lost(endpoint, self._specs(endpoint, self._seen()), f"pods of {host} are told something else", before, after)

    # Pods

    def _on_pod(self, change: str, pod: Raw, _: Raw | None) -> None:
        uid, version = pod["metadata"]["uid"], (pod["metadata"].get("labels") or {}).get(LABEL_VERSION)
        if version is None:
            if change == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed"):
                self._interviews.pop(uid, None)
            return
        found = self._of(version)
        if change != "DELETED" and answers(pod):
            found.since = found.since if found.answering else self._world.now
            found.answering.add(uid)
            found.most = max(found.most, len(found.answering))
        elif uid in found.answering:
            found.answering.discard(uid)
            if not found.answering:
                found.last = self._world.now
        states = (*(pod["status"].get("containerStatuses") or ()), *(pod["status"].get("initContainerStatuses") or ()))
        found.crashed = found.crashed or any((s.get("lastState") or {}).get("terminated") for s in states)
        if change != "DELETED" and any((s["state"].get("waiting") or {}).get("reason") == "CrashLoopBackOff" for s in states):
            self._loops(pod, version)

    def _loops(self, pod: Raw, version: str) -> None:
        """A version that has just got the traffic crashes: see in a while whether it still has it."""
        endpoint = self._api.get("ModelEndpoint", (pod["metadata"]["namespace"], pod["metadata"]["labels"][LABEL_ENDPOINT]))
        if endpoint and not deleting(endpoint) and not deleting(pod) and self._could_go_back(endpoint, version):
            self._world.timer(QUICKLY, self._went_back, endpoint, version, self._process.starts)

    def _could_go_back(self, endpoint: Raw, version: str) -> bool:
        record, specs = versions_of(endpoint), self._specs(endpoint, QUICKLY)
        had = self._world.now - clock.seconds(record[version]["since"]) if record.get(version, {}).get("role") == "Current" else float("inf")
        watched = all(had < spec["strategy"]["watchSeconds"] and spec.get("autoRollback", True) for spec in specs)
        newest = max((v for v in record.values() if v["role"] == "Previous"), key=lambda v: (v["since"], v["name"]), default=None)
        weather = self._weather
        calm = not (weather.error or weather.crash or weather.stall or weather.skew or weather.lost_watch or weather.latency)
        prompt = calm and self._process.running and max(weather.lags.values()) <= 1 and self._world.now > self.meddled + QUICKLY
        possible = newest and self._of(place_of(newest)).answering and self._promised(endpoint) and self.selected(endpoint) == version
        return bool(watched and prompt and possible)

    def selected(self, endpoint: Raw) -> str:
        """The version that the endpoint's own Service selects."""
        service = self._api.get("Service", key_of(endpoint))
        return str(service["spec"]["selector"].get(LABEL_VERSION, "")) if service and controller_of(service) else ""

    def _went_back(self, endpoint: Raw, version: str, start: int) -> None:
        found = self._api.get("ModelEndpoint", key_of(endpoint))
        same = found and found["metadata"]["uid"] == endpoint["metadata"]["uid"] and self._process.starts == start
        if found and same and self._could_go_back(found, version):
            fail("a crash soon after the switch gives the traffic back", f"{version} crashed {QUICKLY:.0f} s ago and still has the traffic")

    def _on_deployment(self, change: str, raw: Raw, old: Raw | None) -> None:
        version = (raw["metadata"].get("labels") or {}).get(LABEL_VERSION)
        if not self._process.cluster.acting or old is None or version is None or not self.left_alone():
            return
        endpoint = self._api.get("ModelEndpoint", (raw["metadata"]["namespace"], raw["metadata"]["labels"][LABEL_ENDPOINT]))
        if endpoint is None or self.selected(endpoint) != version:
            return
        if not self._promised(endpoint):
            self._makes_room(endpoint, raw, old)
            return
        if version not in self._history[endpoint["metadata"]["uid"]].served:
            return  # a crash came between the traffic and the record of it: nothing else has had it yet, or the next look moves it back
        left = 0 if change == "DELETED" or deleting(raw) else raw["spec"]["replicas"]
        wanted = min(spec.get("replicas", 1) for spec in self._specs(endpoint, self._seen()))
        if left < old["spec"]["replicas"] and left < wanted:
            fail("an endpoint keeps answering", f"the operator leaves {left} pods of {version}, which has the traffic, and spec.replicas is {wanted}")

    def _makes_room(self, endpoint: Raw, raw: Raw, old: Raw) -> None:
        """With Recreate the pods with the traffic go for others only, whose Deployment the API server has taken."""
        others = self._api.select("Deployment", raw["metadata"]["namespace"], f"{LABEL_ENDPOINT}={endpoint['metadata']['name']}")
        wanted = all(spec.get("replicas", 1) for spec in self._specs(endpoint, self._seen()))
        gone = deleting(raw) or not raw["spec"]["replicas"]
        if wanted and gone and old["spec"]["replicas"] and all(key_of(other) == key_of(raw) or deleting(other) for other in others):
            fail(
                "pods make room for others only",
                f"the operator takes the pods of {raw['metadata']['name']}, which has the traffic, and nothing takes its place",
            )

    # Evaluations

    def _on_job(self, change: str, job: Raw, _: Raw | None) -> None:
        labels = job["metadata"].get("labels") or {}
        if change != "ADDED" or labels.get(LABEL_STEP) not in (EVALUATE, MERGE):
            return
        endpoint = self._api.get("ModelEndpoint", (job["metadata"]["namespace"], labels[LABEL_ENDPOINT]))
        if endpoint and labels[LABEL_STEP] == MERGE:
            check_job(job, endpoint)
            return
        config = self._api.get("ConfigMap", (job["metadata"]["namespace"], config_of(job["spec"]["template"])))
        if endpoint is None or config is None:
            return
        others = [j for j in self._api.owned(endpoint["metadata"]["uid"], "Job") if j is not job and not finished(j) and not deleting(j)]
        if others:
            fail("one evaluation at a time", f"Job {job['metadata']['name']} is created beside {others[0]['metadata']['name']}")
        asked = asked_of(config["data"]["config.json"])
        record = versions_of(endpoint).get(asked.version, {})
        for told in recorded(record).values():
            again = evaluation_job(endpoint["metadata"]["name"], asked.version, told.get("gate", "")) == job["metadata"]["name"]
            if again and (told.get("evaluation") or {}).get("passed"):
                fail("a passed evaluation counts", f"Job {job['metadata']['name']} asks {asked.version} again")

    def asks(self, pod: Raw, config: EvaluateConfig) -> None:
        """An evaluation begins."""
        for name, endpoint in self._interviews.values():
            other = self._api.get("Pod", (pod["metadata"]["namespace"], name))
            job = controller_of(other) if other else None
            if endpoint == config.endpoint.uid and other and job and job["uid"] in self._api.uids and not deleting(other):
                fail("one evaluation at a time", f"pods {pod['metadata']['name']} and {name} both ask")
        self._interviews[pod["metadata"]["uid"]] = (pod["metadata"]["name"], config.endpoint.uid)

    def asked(self, config: EvaluateConfig, *, passed: bool) -> None:
        """An evaluation has come to a result."""
        if passed:
            version, place = config.candidate.model.partition("#")[2], place_at(config.candidate.url)
            made = self.names.of(place)
            adapter = self.names.wanted(place)[config.candidate.model] if version else made.models[config.candidate.model]
            history = self._history[config.endpoint.uid]
            history.passed.add((made.manner, adapter, canonical(config.gates)))
            if config.current and any(gate.not_worse_than_current for gate in config.gates):
                history.compared[config.version] = place_at(config.current.url)
            else:
                history.compared.pop(config.version, None)
