"""Adapters that come into running pods and go, as stories: one Deployment, whose pods say what they serve."""

from typing import Any

import pytest

from finetune_operator.api.modelendpoint import ModelEndpointStatus
from finetune_operator.observe import Ended, PodView
from finetune_operator.plan.live import asks
from finetune_operator.plan.types import Plan
from finetune_runtime.contract.config import AdapterReport, AdapterState, ServeConfig

from .makers import names, result
from .story import candidate, evaluation, evaluation_pod, serving_pod
from .test_plan_adapters import CLOSED, GATE, PASSED, Desk, named

LATER = "2027-01-15T09:00:00Z"  # an hour after a story begins


class Counter(Desk):
    """An endpoint with live adapters. Its pods do as their ConfigMaps say when the story lets them obey."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**{"adapterLoading": "Live", **spec})
        self.served: dict[str, dict[str, str]] = {}  # by pod: digests by name
        self.refused: dict[str, str] = {}  # why, by the letter of an adapter
        self.silent: set[str] = set()  # pods that do not answer the operator
        self.unready: set[str] = set()  # pods whose engine runs and has no model that users ask
        self.crashed: dict[str, Ended] = {}  # by pod
        self.errands: list[PodView] = []
        self.deployments: set[str] = set()  # all that there ever were

    def hosts(self) -> list[str]:
        return [host for host, replicas in self.replicas.items() if replicas]

    def _pods(self) -> list[PodView]:
        """One for each replica; one that has crashed is not ready."""
        found = []
        for host in self.hosts():
            self.ready[host] = 0
            for number in range(self.replicas[host]):
                name = f"{host}-{number}"
                ended = self.crashed.get(name)
                loops = {"waiting_reason": "CrashLoopBackOff", "restarts": 2, "ended": ended} if ended else {}
                ready = name in self.served and not ended and name not in self.unready
                self.ready[host] += ready
                found.append(serving_pod(host, name=name, uid=name, ready=ready, **loops))
        return found

    def look(self, seconds: float = 1.0, **fields: Any) -> Plan:
        self.pods = [*self._pods(), *self.errands]
        reports = {pod: self._report(pod) for pod in self.served if pod not in self.silent}
        plan: Plan = super().look(seconds, reports=reports, **fields)
        self.deployments |= {b["metadata"]["name"] for b in plan.apply if b["kind"] == "Deployment"}
        return plan

    def config(self, host: str) -> ServeConfig:
        return ServeConfig.model_validate(self.configs[host])

    def _wanted(self, host: str) -> dict[str, str]:
        config = self.config(host)
        trial = config.live.trial if config.live else None
        return {named.name: named.adapter.manifest_sha256 for named in (*config.adapters, *(trial or ()))}

    def _report(self, pod: str) -> AdapterReport:
        states = []
        for name, digest in self._wanted(pod.rpartition("-")[0]).items():
            why = self.refused.get(digest[0])
            state = "Refused" if why else "Served" if self.served[pod].get(name) == digest else "Waiting"
            states.append(AdapterState.model_validate({"name": name, "manifestSha256": digest, "state": state, "message": why or "it is fetched"}))
        return AdapterReport(adapters=states)

    def obey(self, *pods: str) -> None:
        """Pods load what they are told; no name: all of them."""
        for host in self.hosts():
            for number in range(self.replicas[host]):
                if not pods or f"{host}-{number}" in pods:
                    self.served[f"{host}-{number}"] = {n: d for n, d in self._wanted(host).items() if d[0] not in self.refused}

    def public(self) -> dict[str, str]:
        """What users get from the pods that the Service selects, by what these are told: letters by name."""
        return self.adapters(self.traffic())

    def trial(self) -> dict[str, str]:
        live = self.config(self.traffic()).live
        return {named.name: named.adapter.manifest_sha256[0] for named in (live.trial if live else None) or ()}

    def settle(self, *, looks: int = 12, verdict: dict[str, Any] | None = None) -> "Counter":
        for _ in range(looks):
            self.look()
            self.obey()
            self.errands = []
            if self.jobs:
                job = next(iter(self.jobs))
                self.jobs[job] = evaluation(job, complete=True, finished_at="2027-01-15T08:00:00Z")
                self.errands = [evaluation_pod(job, 0, result("evaluate", evaluation=verdict or PASSED))]
        return self


def counter(*entries: dict[str, Any], **spec: Any) -> Counter:
    """One that serves a under its own name, and these, long after the switch."""
    found = Counter(candidate=candidate("a"), adapters=list(entries), **spec).settle()
    found.look(600)
    return found


@pytest.mark.parametrize("auto", [True, False], ids=["which is given up at once", "which waits where nobody is to give up"])
def test_pods_that_run_and_refuse_a_first_version_say_why(auto: bool) -> None:
    story = Counter(candidate=candidate("a"), autoRollback=auto)
    story.look()
    [host] = story.hosts()
    story.served[f"{host}-0"], story.refused["a"], story.unready = {}, "rank 64 is above spec.maxLoraRank 16", {f"{host}-0"}
    story.look()
    story.look()
    assert (story.roles()["a"], story.progress()) == ("Rejected" if auto else "Candidate", ("False" if auto else "True", "FetchFailed"))
    assert story.message("Progressing").endswith(f"pod {host}-0 cannot serve support: rank 64 is above spec.maxLoraRank 16")


def test_the_first_version_starts_pods_with_a_sidecar_that_has_the_keys() -> None:
    story = Counter(candidate=candidate("a"))
    story.look()
    bodies = {b["kind"]: b for b in story.plan.apply}
    host = bodies["Deployment"]["metadata"]["name"]
    assert {f"Deployment/{host}", f"ConfigMap/{host}", f"Service/{host}"} == set(names(story.plan.apply))
    pod = bodies["Deployment"]["spec"]["template"]["spec"]
    assert [(c["name"], c.get("restartPolicy")) for c in pod["initContainers"]] == [("fetch", None), ("adapters", "Always")]
    keys = [{e["name"] for e in c["env"]} & {"AWS_SECRET_ACCESS_KEY"} for c in (*pod["initContainers"], *pod["containers"])]
    assert [bool(found) for found in keys] == [True, True, False]
    assert story.config(host).live is not None
    story.settle()
    assert (story.traffic(), story.public(), story.version("a")["host"]) == (host, {"support": "a"}, host)
    assert story.status["selector"] == f"finetune.dev/endpoint=support,finetune.dev/version={host}"


def test_a_retrained_adapter_is_tried_in_the_pods_that_users_have_and_then_given_to_them() -> None:
    story = counter()
    host = story.traffic()
    story.spec["candidate"] = candidate("b")
    story.look()
    record = story.version("b")
    assert (story.public(), story.trial()) == ({"support": "a"}, {f"support#{record['name']}": "b"})
    assert [(ref.kind, ref.name) for ref, _ in story.plan.patch] == [("Pod", f"{host}-0")]
    assert (record["role"], record["host"], story.progress()) == ("Candidate", host, ("True", "RollingOut"))
    story.look()
    assert story.public() == {"support": "a"}
    story.obey()
    story.look()
    assert (story.public(), story.trial(), story.roles()) == ({"support": "b"}, {}, {"a": "Current", "b": "Candidate"})
    story.look()
    assert story.roles()["b"] == "Candidate", "its pods have yet to follow"
    story.obey()
    story.look()
    assert (story.roles(), story.progress()) == ({"a": "Previous", "b": "Current"}, ("False", "UpToDate"))
    assert (story.traffic(), story.deployments, story.replicas) == (host, {host}, {host: 1})


def test_many_names_come_and_go_without_another_deployment() -> None:
    story = counter()
    story.spec["adapters"] = [named("rooms", "b"), named("bills", "c")]
    assert story.settle(looks=20).public() == {"support": "a", "bills": "c", "rooms": "b"}
    assert story.status["servedNames"] == ["support", "bills", "rooms"]
    story.spec["adapters"] = [named("bills", "c")]
    assert story.settle().public() == {"support": "a", "bills": "c"}
    assert len(story.deployments) == 1


class TestGate:
    def test_it_asks_the_new_adapter_under_a_name_that_nobody_knows_and_compares_it_with_what_users_get(self) -> None:
        story = counter(gate=GATE)
        host = story.traffic()
        story.spec["candidate"] = candidate("b")
        story.look()
        story.obey()
        story.look()
        name = story.version("b")["name"]
        config = story.configs[f"{host}-gate"]
        url = f"http://{host}.team.svc.cluster.local/v1"
        assert (config["candidate"], config["current"]) == ({"url": url, "model": f"support#{name}"}, {"url": url, "model": "support"})
        assert (story.public(), story.progress()) == ({"support": "a"}, ("True", "Evaluating"))
        assert story.settle().public() == {"support": "b"}

    def test_one_that_does_not_pass_is_never_given_to_users(self) -> None:
        story = counter()
        story.spec |= {"candidate": candidate("b"), "gate": GATE}
        for _ in range(12):
            story.settle(looks=1, verdict=CLOSED)
            assert story.public() == {"support": "a"}
        assert (story.trial(), story.version("b")["reason"], story.progress()) == ({}, "GateClosed", ("False", "GateClosed"))
        assert story.version("b").get("public") is None


class TestPods:
    def trying(self, **spec: Any) -> Counter:
        """One whose second adapter is to be loaded by two pods."""
        story = counter(replicas=2, **spec)
        story.spec["candidate"] = candidate("b")
        story.look()
        return story

    def test_every_pod_that_answers_has_to_have_it(self) -> None:
        story = self.trying()
        host = story.traffic()
        story.obey(f"{host}-0")
        story.look()
        assert story.public() == {"support": "a"}
        assert f"pod {host}-1 loads support#" in story.status["conditions"][1]["message"]
        story.obey()
        story.look()
        assert story.public() == {"support": "b"}
        story.obey(f"{host}-1")
        story.look()
        assert story.roles()["b"] == "Candidate"

    def test_a_pod_that_is_not_ready_is_not_waited_for(self) -> None:
        story = self.trying()
        host = story.traffic()
        story.crashed[f"{host}-1"] = Ended("main", 1, "Error", "out of memory", "2027-01-15T07:00:00Z")
        story.obey(f"{host}-0")
        story.look()
        assert story.public() == {"support": "b"}

    def test_one_that_says_nothing_is_waited_for_until_the_time_is_over(self) -> None:
        story = self.trying(strategy={"timeoutSeconds": 60})
        host = story.traffic()
        story.silent = {f"{host}-0"}
        story.obey()
        story.look()
        assert "does not say what it serves" in story.status["conditions"][1]["message"]
        assert story.plan.requeue_after is not None
        assert story.plan.requeue_after <= 5
        story.look(60)
        assert (story.version("b")["reason"], story.public(), story.trial()) == ("NotReadyInTime", {"support": "a"}, {})

    def test_one_that_cannot_serve_it_tells_why_and_the_version_is_given_up(self) -> None:
        story = self.trying()
        story.refused["b"] = "LoRA rank 128 is greater than max_lora_rank 64: set spec.maxLoraRank"
        story.obey()
        story.look()
        assert (story.version("b")["reason"], story.public(), story.trial()) == ("FetchFailed", {"support": "a"}, {})
        assert "set spec.maxLoraRank" in story.version("b")["message"]
        story.look()
        assert (story.trial(), story.progress()) == ({}, ("False", "FetchFailed"))

    def test_one_that_crashes_with_it_takes_it_away_again(self) -> None:
        story = self.trying()
        host = story.traffic()
        story.crashed[f"{host}-0"] = Ended("main", 1, "Error", "illegal memory access", LATER)
        story.look()
        assert (story.version("b")["reason"], story.public(), story.trial()) == ("CrashLoop", {"support": "a"}, {})

    def test_one_that_crashes_soon_after_the_switch_gives_users_the_old_adapter_again(self) -> None:
        story = self.trying(strategy={"watchSeconds": 600})
        story.settle(looks=5)
        assert (story.roles(), story.public()) == ({"a": "Previous", "b": "Current"}, {"support": "b"})
        host = story.traffic()
        story.crashed[f"{host}-0"] = Ended("main", 1, "Error", "illegal memory access", LATER)
        story.look()
        assert (story.roles(), story.public()) == ({"a": "Current", "b": "Rejected"}, {"support": "a"})
        assert (story.traffic(), story.deployments) == (host, {host})

    def test_a_crash_before_the_switch_is_not_held_against_it(self) -> None:
        story = self.trying(strategy={"watchSeconds": 600})
        host = story.traffic()
        story.crashed[f"{host}-0"] = Ended("main", 1, "Error", "node was drained", "2027-01-15T07:00:00Z")
        story.settle(looks=5)
        assert story.roles() == {"a": "Previous", "b": "Current"}


class TestUsers:
    def test_a_pin_brings_back_an_older_set_into_the_same_pods(self) -> None:
        story = counter(named("rooms", "b"))
        both = next(v["name"] for v in story.status["versions"] if v["role"] == "Current")
        story.spec["adapters"] = [named("rooms", "c")]
        story.settle()
        story.spec["adapters"] = []
        story.settle()
        story.look(600)
        assert story.public() == {"support": "a"}
        story.spec["version"] = both
        assert story.settle().public() == {"support": "a", "rooms": "b"}
        assert len(story.deployments) == 1

    @pytest.mark.parametrize("change", [{"maxLength": 4096}, {"maxAdapters": 8}, {"maxLoraRank": 128}, {"adapterLoading": "AtStart"}], ids=str)
    def test_what_else_changes_is_new_pods_with_all_adapters(self, change: dict[str, Any]) -> None:
        story = counter(named("rooms", "b"))
        old = story.traffic()
        story.spec |= change
        story.look()
        assert (story.traffic(), set(story.replicas)) == (old, story.deployments)
        assert story.settle().public() == {"support": "a", "rooms": "b"}
        assert story.traffic() != old
        story.look(600)
        story.look()
        assert (set(story.replicas), story.deployments) == ({story.traffic()}, {old, story.traffic()})

    def test_a_change_of_the_spec_while_pods_take_a_version_up_finds_that_it_has_the_traffic(self) -> None:
        story = counter()
        old = story.traffic()
        story.spec["candidate"] = candidate("b")
        story.look()
        story.obey()
        story.look()
        assert story.public() == {"support": "b"}
        story.spec |= {"candidate": candidate("c"), "maxLength": 4096}
        story.look()
        assert (story.traffic(), story.public()) == (old, {"support": "b"})
        assert next(v["job"] for v in story.status["versions"] if v["role"] == "Current") == "b"
        assert story.settle(looks=20).public() == {"support": "c"}

    def test_the_first_version_with_pods_that_can_be_told_nothing_any_more_stays_a_way_back(self) -> None:
        story = Counter(candidate=candidate("a"))
        story.look()
        story.obey()
        story.look()
        name, host = story.version("a")["name"], story.version("a")["host"]
        assert (story.version("a")["public"], story.roles()) == (True, {"a": "Candidate"})
        story.spec |= {"maxLength": 4096, "version": "nonsense"}
        story.look()
        assert (story.progress()[1], story.roles(), story.replicas) == ("VersionNotFound", {"a": "Previous"}, {host: 1})
        story.spec["version"] = name
        assert (story.settle().traffic(), story.public()) == (host, {"support": "a"})

    def test_one_that_is_overtaken_before_its_pods_have_it_leaves_nothing(self) -> None:
        story = counter()
        story.spec["candidate"] = candidate("b")
        story.look()
        story.spec["candidate"] = candidate("c")
        story.look()
        assert (story.version("b")["role"], list(story.trial().values())) == ("Retired", ["c"])
        assert story.settle().public() == {"support": "c"}

    def test_with_recreate_nobody_waits_for_an_adapter(self) -> None:
        story = counter(strategy={"type": "Recreate"})
        story.spec["candidate"] = candidate("b")
        for _ in range(6):
            story.look()
            assert story.replicas == {story.traffic(): 1}
            story.obey()
        assert story.public() == {"support": "b"}

    def test_an_endpoint_that_is_scaled_to_zero_takes_what_is_proposed(self) -> None:
        story = counter(replicas=0)
        story.spec["candidate"] = candidate("b")
        assert story.settle().public() == {"support": "b"}
        story.spec |= {"candidate": candidate("c"), "gate": GATE}
        story.look()
        assert story.replicas == {story.traffic(): 1}, "the gate has one pod to ask"
        assert story.settle().public() == {"support": "c"}
        assert story.replicas == {story.traffic(): 0}

    def test_a_settled_status_is_stable(self) -> None:
        story = counter(named("rooms", "b"), gate=GATE)
        story.look(600)
        before = story.status
        assert (story.look(60).status, story.plan.delete, story.plan.create) == (before, (), ())


def test_only_while_something_is_on_its_way_pods_are_asked_what_they_serve() -> None:
    story = counter()
    assert asks(ModelEndpointStatus.model_validate(story.status)) == ""
    story.spec["candidate"] = candidate("b")
    story.look()
    assert asks(ModelEndpointStatus.model_validate(story.status)) == story.traffic()
