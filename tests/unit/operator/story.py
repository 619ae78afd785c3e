"""An endpoint's life told step by step: each look is a decision whose objects and status the next one finds."""

from typing import Any

from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec
from finetune_operator.observe import DeploymentView, Ended, JobView, PodView, RouteView
from finetune_operator.plan.endpoint import decide
from finetune_operator.plan.types import Plan
from finetune_operator.plan.versions import version_of

from .makers import NOW, SETTINGS, SPEC, START, endpoint_state

ADAPTER_A = {"uri": "s3://models/ft/team/a/uid-a/adapter", "manifestSha256": "a" * 64}
ADAPTER_B = {"uri": "s3://models/ft/team/b/uid-b/adapter", "manifestSha256": "b" * 64}
ADAPTER_C = {"uri": "s3://models/ft/team/c/uid-c/adapter", "manifestSha256": "c" * 64}


def candidate(letter: str, **fields: Any) -> dict[str, Any]:
    """The candidate of job `letter`, for example b."""
    return {"job": letter, "jobUid": f"uid-{letter}", "adapter": {"a": ADAPTER_A, "b": ADAPTER_B, "c": ADAPTER_C}[letter], **fields}


class Story:
    """`spec` is the user's; Deployments are as ready as the story says."""

    def __init__(self, **spec: Any) -> None:
        self.spec: dict[str, Any] = {"model": SPEC["model"], "storage": SPEC["storage"], **spec}
        self.status: dict[str, Any] = {}
        self.now = NOW
        self.ready: dict[str, int] = {}  # by version
        self.replicas: dict[str, int] = {}
        self.refusals: dict[str, str] = {}  # of their pods
        self.jobs: dict[str, JobView] = {}
        self.pods: list[PodView] = []
        self.route: RouteView | None = None  # a Gateway accepts what is applied
        self.gateway_api = True
        self.plan = Plan()

    def name(self, letter: str) -> str:
        """Version that today's spec makes of an adapter."""
        spec = ModelEndpointSpec.model_validate(self.spec)
        return version_of("support", spec, {"": Candidate.model_validate(candidate(letter)).adapter}, SETTINGS)

    def look(self, seconds: float = 1.0, **fields: Any) -> Plan:
        """Decide, and let the cluster carry it out."""
        self.now += seconds
        views = [
            DeploymentView(v, "uid-1", replicas=n, ready=min(n, self.ready.get(v, 0)), current=True, deleting=False, uid=v, refusal=self.refusals.get(v, ""))
            for v, n in self.replicas.items()
        ]
        seen = endpoint_state(
            *views, *self.pods, *self.jobs.values(), spec=self.spec, status=self.status, **{"route": self.route, "gateway_api": self.gateway_api, **fields}
        )
        self.plan = decide(seen, SETTINGS, self.now)
        for body in self.plan.apply:
            if body["kind"] == "Deployment":
                self.replicas[body["metadata"]["name"]] = body["spec"]["replicas"]
            if body["kind"] == "HTTPRoute" and self.route is None:
                self.route = RouteView("support", "uid-1", "route-1", accepted=True)
        for ref, change in self.plan.patch:
            if ref.kind == "Deployment":
                self.replicas[ref.name] = change["spec"]["replicas"]
        for body in self.plan.create:
            self.jobs[body["metadata"]["name"]] = evaluation(body["metadata"]["name"])
        for ref in self.plan.delete:
            if ref.kind == "Deployment":
                self.replicas.pop(ref.name, None)
            if ref.kind == "HTTPRoute":
                self.route = None
            if ref.kind == "Job":
                self.jobs.pop(ref.name, None)
        self.status = self.plan.status
        return self.plan

    def up(self, letter: str, pods: int = 1) -> str:
        """The version's pods answer."""
        self.ready[self.name(letter)] = pods
        return self.name(letter)

    def serving(self, letter: str) -> str:
        """A version that has the traffic."""
        self.spec["candidate"] = candidate(letter)
        self.look()
        self.up(letter, self.spec.get("replicas", 1))
        self.look()
        assert self.traffic() == self.name(letter)
        return self.name(letter)

    def traffic(self) -> str:
        """Version that the endpoint's Service selects."""
        services = [b for b in self.plan.apply if b["kind"] == "Service" and b["metadata"]["name"] == "support"]
        return str(services[0]["spec"]["selector"]["finetune.dev/version"]) if services else ""

    def weights(self) -> dict[str, int]:
        """Shares of the requests through the Gateway, by version; empty without a route."""
        routes = [b for b in self.plan.apply if b["kind"] == "HTTPRoute"]
        return {b["name"]: b["weight"] for b in routes[0]["spec"]["rules"][0]["backendRefs"]} if routes else {}

    def roles(self) -> dict[str, str]:
        """Roles by job."""
        return {v["job"]: v["role"] for v in self.status.get("versions", [])}

    def version(self, letter: str) -> dict[str, Any]:
        """Record of a job's version."""
        found: dict[str, Any] = next(v for v in self.status["versions"] if v["job"] == letter)
        return found

    def progress(self) -> tuple[str, str]:
        """Status and reason of Progressing."""
        return self.condition("Progressing")

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        """Message of a condition."""
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)


def serving_pod(version: str, **fields: Any) -> PodView:
    values: dict[str, Any] = {
        "name": f"{version}-p", "uid": f"{version}-p", "parent": version, "owner_name": "support", "phase": "Running", "node": "n1", "created_at": START,
        "deleting": False, "running": False, "ready": False, "waiting_reason": "", "waiting_message": "", "unschedulable": "", "restarts": 0, "ended": None,
    }  # fmt: skip
    return PodView(**{**values, **fields})


def crashing(version: str, restarts: int) -> PodView:
    return serving_pod(version, waiting_reason="CrashLoopBackOff", restarts=restarts, ended=Ended("main", 1, "Error", "no GPU", START))


def evaluation(name: str, **fields: Any) -> JobView:
    values: dict[str, Any] = {
        "name": name, "owner_uid": "uid-1", "step": "Evaluate", "attempt": 0, "suspended": False, "complete": False, "failed": False, "failure": "",
        "finished_at": "", "deleting": False, "uid": name, "image": "trainer:1",
    }  # fmt: skip
    return JobView(**{**values, **fields})


def evaluation_pod(name: str, code: int, message: str, **fields: Any) -> PodView:
    done = Ended("main", code, "Completed" if code == 0 else "Error", message, START)
    return serving_pod(name, name=f"{name}-x", uid=f"{name}-x", phase="Failed" if code else "Succeeded", ended=done, **fields)
