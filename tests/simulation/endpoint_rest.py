"""Endpoints at rest: what must be there, what must be gone, and whether what a rollout says it waits for really misses."""

from finetune_operator import clock
from finetune_operator.api.modelendpoint import ModelEndpointSpec
from finetune_operator.names import LABEL_ENDPOINT, LABEL_STEP, LABEL_VERSION, evaluation_config
from finetune_operator.plan.rollout import MAX_RESTARTS
from finetune_operator.plan.versions import WITH_PODS, version_of
from finetune_runtime.contract.config import AdapterRef

from .adapters import digests, recorded, sha, wanted
from .api import Api, Raw, controller_of, deleting, key_of
from .gateway import Gateway
from .invariants import conditions, fail
from .jobs import terminal
from .kubelet import Kubelets
from .process import Process
from .remembered import gates_of, place_of, versions_of
from .rollouts import Rollouts
from .serving import Servers, opens

GIVEN_UP = ("CrashLoop", "LostReadiness", "FetchFailed", "NotReadyInTime", "GateClosed", "EvaluationFailed", "MergeFailed", "Refused")
AT_THE_GATEWAY = ("GatewayAPIMissing", "RouteRefused")
SLACK = 60.0  # seconds that a round may come late


class EndpointRest:
    """Judges all endpoints when nothing happens any more."""

    def __init__(self, api: Api, kubelets: Kubelets, servers: Servers, process: Process, rollouts: Rollouts, gateway: Gateway) -> None:
        self._api, self._kubelets, self._servers, self._process, self._rollouts, self._gateway = api, kubelets, servers, process, rollouts, gateway

    def at_rest(self) -> None:
        """Raises ViolationError."""
        for raw in self._api.all("ModelEndpoint"):
            if deleting(raw) or raw["metadata"]["namespace"] in self._api.terminating:
                continue
            progress = conditions(raw).get("Progressing", {"status": "", "reason": "", "message": "no condition Progressing"})
            if wrong := self._wrong(raw, progress):
                told = f"{progress['status']} {progress['reason']}: {progress['message']}"
                fail("every rollout ends or says what it waits for", f"{raw['metadata']['name']}: {wrong} (Progressing={told})")
            if progress["reason"] != "NameConflict":
                self._gone(raw)
                self._there(raw)

    # What is there

    def _mine(self, raw: Raw, kind: str) -> list[Raw]:
        return [c for c in self._api.owned(raw["metadata"]["uid"], kind) if not deleting(c)]

    def _own(self, raw: Raw, found: dict[str, Raw]) -> str:
        """Name of the version that today's spec makes of adapters."""
        spec, refs = ModelEndpointSpec.model_validate(raw["spec"]), {name: AdapterRef.model_validate(a["adapter"]) for name, a in found.items()}
        return version_of(raw["metadata"]["name"], spec, refs, self._process.settings)

    def _lost(self, raw: Raw, record: Raw) -> bool:
        """Whether somebody has deleted a version by hand that nothing can bring back, as it was made by an older spec."""
        return place_of(record) in self._rollouts.deleted and record["name"] != self._own(raw, recorded(record))

    def _gone(self, raw: Raw) -> None:
        """Nothing is left of versions without a role, and of evaluations that are over."""
        kept = {place_of(record) for record in versions_of(raw).values() if record["role"] in WITH_PODS}
        ours, asking = {*kept, *map(evaluation_config, kept)}, any(record["role"] == "Candidate" for record in versions_of(raw).values())
        for kind in ("Deployment", "Service", "ConfigMap", "Job"):
            for child in self._mine(raw, kind):
                name, labels = child["metadata"]["name"], child["metadata"]["labels"]
                left = not asking if kind == "Job" else name not in ours and (LABEL_VERSION in labels or LABEL_STEP in labels)
                # What is left of a version whose Deployment somebody has deleted before it went is found by nobody.
                if left and not any(version in name for version in self._rollouts.deleted):
                    fail("nothing is left of versions that went", f"{kind} {name} is still there")

    def _there(self, raw: Raw) -> None:
        """The version with the traffic has all its pods, previous ones have one as long as they are kept."""
        spec, records = raw["spec"], versions_of(raw)
        previous = [v for v, record in records.items() if record["role"] == "Previous"]
        # Where none has the traffic on record, one may have it by a round that ended before it was.
        kept = spec.get("keepPrevious", 0) + all(record["role"] != "Current" for record in records.values())
        if len(previous) > kept:
            fail("nothing is left of versions that went", f"{len(previous)} previous versions, and {kept} are to be kept")
        recreate = spec["strategy"]["type"] == "Recreate"
        for version, record in records.items():
            waits = recreate and (record["role"] == "Previous" or "Candidate" in {r["role"] for r in records.values()})
            if waits or self._lost(raw, record):
                continue
            found = self._api.get("Deployment", (raw["metadata"]["namespace"], place_of(record)))
            replicas = found["spec"]["replicas"] if found else 0
            if record["role"] == "Previous" and replicas < min(1, spec["replicas"]):
                fail("rollback stays possible", f"previous version {version} has {replicas} pods")
            # Where nobody wants pods one is there for as long as a candidate has to show in it that it answers, or is compared with what it says.
            compares = any(gate.not_worse_than_current for entry in wanted(spec).values() for gate in gates_of(spec, sha(entry)))
            shown = int(any(other["role"] == "Candidate" and (compares or place_of(other) == place_of(record)) for other in records.values()))
            if record["role"] == "Current" and replicas not in (spec["replicas"], max(spec["replicas"], shown)):
                fail("an endpoint keeps answering", f"version {version} has the traffic and {replicas} pods, spec.replicas is {spec['replicas']}")
        current = next((v for v, record in records.items() if record["role"] == "Current"), "")
        service = self._api.get("Service", key_of(raw))
        selected = str(service["spec"]["selector"].get(LABEL_VERSION, "")) if service else ""
        if current and selected != place_of(records[current]):
            fail("the record is true", f"{current} is recorded as Current, and the Service selects {selected or 'nothing'}")

    # What is waited for

    def _wrong(self, raw: Raw, progress: Raw) -> str:
        spec, records = raw["spec"], versions_of(raw)
        pin, proposed = spec.get("version"), wanted(spec)
        # A version that is named and has no pods is made anew by today's spec, under another name.
        named = {sha(v) for v in records.values() if pin in (v["name"], v.get("job"))} if pin else set(digests(proposed).values())
        mine = [v for v in records.values() if sha(v) in named]
        if not pin and progress["status"] == "False" and progress["reason"] != "NameConflict" and (lost := self._unserved(records, proposed)):
            return lost
        if progress["status"] == "True":
            return self._stuck(raw, progress, next((v for v in records.values() if v["role"] == "Candidate"), None))
        match progress["reason"]:
            case "UpToDate":
                known = any(v["role"] == "Current" for v in (mine if pin or proposed else records.values()))
                return "" if known else "another version is wanted than the one with the traffic"
            case "NoVersion":
                return "" if not (pin or proposed) else "there is a version to roll out"
            case "VersionNotFound":
                own = self._own(raw, proposed) if set(proposed) == {""} else ""
                named_so = [v for v in mine if pin in (v["name"], v.get("job"))]
                servable = [v["name"] for v in named_so if v.get("served") or v["role"] in ("Current", "Previous") or v["name"] == own]
                return f"{pin} is known" if servable else ""
            case "NameConflict":
                foreign = (c for kind in ("Service", "ConfigMap", "Deployment", "HTTPRoute") if (c := self._api.get(kind, key_of(raw))))
                return "" if any(controller_of(c) is None for c in foreign) else "no name is taken"
            case "GateClosed" if proposed and all(self._opens(spec, entry) for entry in proposed.values()):
                return "all its gates are open"
            case reason if reason in GIVEN_UP:
                # Also where it is what users have that today's spec could not serve.
                now = next((digests(recorded(v)) for v in records.values() if v["role"] == "Current"), {})
                told = (v for v in records.values() if v in mine or digests(recorded(v)) == now)
                return "" if any(v["role"] == "Rejected" and v.get("reason") == reason for v in told) else "no version is given up for that"
            case _:
                return "this is no reason to stand still"

    def _unserved(self, records: dict[str, Raw], proposed: dict[str, Raw]) -> str:
        """A name that somebody waits for in vain: its adapter is neither served nor given up."""
        current = next((v for v in records.values() if v["role"] == "Current"), None)
        if current is None and not proposed:
            return ""
        now = digests(recorded(current)) if current else {}
        given_up = {(v.get("servedName", ""), sha(v)) for v in records.values() if v["role"] == "Rejected"}
        lost = [name for name, digest in digests(proposed).items() if now.get(name) != digest and (name, digest) not in given_up]
        over = [name for name in now if proposed and name not in proposed]
        less = [digests(recorded(v)) for v in records.values() if v["role"] == "Rejected"]
        if any(found.items() <= now.items() and not found.keys() & set(over) for found in less):
            over = []  # what would be left cannot be served
        if len(over) == len(now):
            over = []  # nothing would be left, and what comes in their place cannot be served
        told = [*(f"{name or 'its own name'} is neither served nor given up" for name in lost), *(f"{name or 'its own name'} is served still" for name in over)]
        return "; ".join(told)

    def _opens(self, spec: Raw, candidate: Raw) -> bool:
        """Whether the candidate passes, as the questions turn out."""
        quality, loss = self._servers.adapters.of(sha(candidate)).quality, candidate.get("evalLoss")
        return all(opens(gate, loss, quality) and not gate.not_worse_than_current for gate in gates_of(spec, sha(candidate)))

    def _stuck(self, raw: Raw, progress: Raw, candidate: Raw | None) -> str:
        """Why a candidate should not have to wait; empty when it has to."""
        reason, asked = progress["reason"], "evaluation pod" in progress["message"]  # the pod that asks waits for as long as it takes
        spec, missing = raw["spec"], self._kubelets.needs.missing
        if candidate is None:
            return "no version is on its way"
        nature, gives_up = self._servers.adapters.worst(digests(recorded(candidate)).values()), spec.get("autoRollback", True)
        overdue = self._process.now() - clock.seconds(candidate["since"]) - spec["strategy"]["timeoutSeconds"]
        if gives_up and overdue > SLACK and not asked and reason not in ("Evaluating", "Recreating", "Merging", *AT_THE_GATEWAY):
            return f"{candidate['name']} is {overdue:.0f} s over its time"
        if "it is compared with" in progress["message"]:
            return "" if self._silent(raw) else "the version with the traffic answers"
        full = not any(n.up and not n.removed and self._kubelets.free(n) for n in self._kubelets.nodes)
        shared = "host" in candidate  # its pods may be in the state that another adapter has left them in, where nobody gives up
        waits = {
            "Starting": self._servers.broken or nature.kind == "mute", "RollingOut": self._servers.broken or self._mute(raw, candidate) or self._worn(raw, candidate),
            "CrashLoop": (nature.kind != "good" and not gives_up) or shared, "FetchFailed": (nature.kind == "unreadable" or shared) and not gives_up,
            "Unschedulable": full or "gpu" in missing, "VolumeNotFound": "claim" in missing, "SecretNotFound": "secret" in missing,
            "ImagePullFailed": "image" in missing, "Evaluating": self._held(raw), "Recreating": self._ending(raw), "Merging": self._held(raw),
            "GatewayAPIMissing": not self._gateway.installed, "RouteRefused": self._gateway.refuses, "LostReadiness": not gives_up,
        }  # fmt: skip
        return "" if waits.get(reason) else f"nothing holds {candidate['name']} up"

    def _mute(self, raw: Raw, candidate: Raw) -> bool:
        """Whether an adapter never answers that its pods load: its own, or one of a version that shares them and has been taken over at no replicas."""
        together = (v for v in versions_of(raw).values() if v["role"] in WITH_PODS and place_of(v) == place_of(candidate))
        return any(self._servers.adapters.of(digest).kind == "mute" for v in together for digest in digests(recorded(v)).values())

    def _worn(self, raw: Raw, candidate: Raw) -> bool:
        """Whether a pod that it shares has been started so often for others that the model leaves it where it is."""
        pods = self._api.select("Pod", raw["metadata"]["namespace"], f"{LABEL_VERSION}={place_of(candidate)}") if "host" in candidate else []
        return any(status.get("restartCount", 0) >= MAX_RESTARTS for p in pods for status in p["status"].get("containerStatuses") or ())

    def _silent(self, raw: Raw) -> bool:
        """Whether no pod of the version with the traffic answers."""
        current = next((place_of(v) for v in versions_of(raw).values() if v["role"] == "Current"), "")
        return not self._servers.answering(raw["metadata"]["namespace"], current)

    def _held(self, raw: Raw) -> bool:
        """Whether somebody has suspended the evaluation or the merge."""
        return any(j["spec"].get("suspend") for j in self._mine(raw, "Job"))

    def _ending(self, raw: Raw) -> bool:
        """Whether pods of the version with the traffic are on a node that nobody hears."""
        pods = self._api.select("Pod", raw["metadata"]["namespace"], f"{LABEL_ENDPOINT}={raw['metadata']['name']},{LABEL_VERSION}")
        return any(not terminal(p) and deleting(p) for p in pods)
