"""Rollouts on a real API server with the real Deployment and Job controllers; the tests stand in for the kubelet only."""

import json
import signal
from functools import partial
from typing import Any

import pytest

from tests.integration.job import TRAINED, finetunejob, phase, prepared, running, train_message
from tests.integration.operator_process import Namespace, Operator, wait

Body = dict[str, Any]
GATE = {"prompts": [{"name": "room", "prompt": "What is the code of room 7?", "expect": {"contains": ["41"]}}]}


def candidate(letter: str) -> Body:
    return {"job": letter, "jobUid": f"uid-{letter}", "adapter": {"uri": f"s3://models/ft/{letter}/adapter", "manifestSha256": letter * 64}}


def endpoint(**spec: Any) -> Body:
    model = {"source": "s3://models/base", "type": "qwen3", "template": "qwen3"}
    storage = {"s3": {"uri": "s3://models/ft", "endpoint": "http://s3:7070", "secretRef": {"name": "s3"}}}
    return {
        "apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint", "metadata": {"name": "support"},
        "spec": {"model": model, "storage": storage, "strategy": {"watchSeconds": 5}, **spec},
    }  # fmt: skip


class Endpoint:
    """One endpoint as its user and its pods' kubelet see it."""

    def __init__(self, here: Namespace) -> None:
        self.here = here

    def edit(self, **spec: Any) -> None:
        self.here.rest.merge("modelendpoint", "support", {"spec": spec})

    def status(self) -> Body:
        return dict(self.here.get("modelendpoint", "support").get("status") or {})

    def version(self, letter: str) -> Body:
        return next((v for v in self.status().get("versions", []) if v.get("job") == letter), {})

    def until(self, letter: str, role: str) -> Body:
        return wait(f"version {letter} is {role}", lambda: found if (found := self.version(letter)).get("role") == role else {}, 30)

    def pods(self, letter: str) -> list[str]:
        name = self.version(letter).get("name", "?")
        found = self.here.items("pods", f"finetune.dev/version={name}")
        return [p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]]

    def answer(self, letter: str) -> str:
        """The version's pods answer. Returns the first one."""
        name = wait(f"a pod of {letter}", lambda: self.pods(letter))[0]
        for pod in self.pods(letter):
            self.here.run(pod)
        return name

    def traffic(self) -> str:
        service = self.here.get("service", "support")
        return str(service["spec"]["selector"]["finetune.dev/version"]) if service else ""

    def serve(self, letter: str) -> str:
        """A version that has the traffic. Returns its name."""
        self.edit(candidate=candidate(letter))
        self.until(letter, "Candidate")
        self.answer(letter)
        return str(self.until(letter, "Current")["name"])

    def evaluation(self, passed: bool, *reasons: str) -> None:
        """The pod of the evaluation ends with a verdict."""
        pod = wait("a pod that evaluates", lambda: self.here.items("pods", "finetune.dev/step=Evaluate"))[0]["metadata"]["name"]
        found = {"passed": passed, "reasons": list(reasons), "prompts": 1, "repeats": 3}
        self.here.end(pod, 0, json.dumps({"step": "evaluate", "reason": "Completed" if passed else "GateClosed", "evaluation": found}))


def is_new(here: Namespace, kind: str, name: str, uid: str) -> bool:
    found = here.get(kind, name)
    return bool(found) and found["metadata"]["uid"] != uid


@pytest.fixture
def mine(operator: Operator, here: Namespace) -> Endpoint:
    here.apply(endpoint())
    return Endpoint(here)


def test_a_second_version_takes_over_and_the_first_one_goes_after_its_time(mine: Endpoint) -> None:
    old = mine.serve("a")
    new = mine.serve("b")
    assert mine.traffic() == new
    mine.until("a", "Retired")
    wait("nothing of the old version is left", lambda: not [o for o in mine.here.items("deployments,services,configmaps") if o["metadata"]["name"] == old])
    budget = mine.here.get("poddisruptionbudget", "support")
    assert budget["spec"]["selector"]["matchLabels"]["finetune.dev/version"] == new
    scale = json.loads(mine.here.kubectl("get", "--raw", f"/apis/finetune.dev/v1alpha1/namespaces/{mine.here.rest.namespace}/modelendpoints/support/scale"))
    assert (scale["status"]["selector"], scale["status"]["replicas"]) == (f"finetune.dev/endpoint=support,finetune.dev/version={new}", 1)


def test_the_gate_stands_between_an_answer_and_the_traffic(mine: Endpoint) -> None:
    old = mine.serve("a")
    mine.edit(gate=GATE, candidate=candidate("b"))
    mine.until("b", "Candidate")
    pod = mine.answer("b")
    mine.evaluation(False, "pass rate 0.00 is below minPassRate 0.80")
    rejected = mine.until("b", "Rejected")
    assert (rejected["reason"], mine.traffic()) == ("GateClosed", old)
    wait("the candidate's pods are gone", lambda: not mine.here.get("pods", pod))
    wait("the evaluation is cleaned up", lambda: not mine.here.items("jobs", "finetune.dev/step=Evaluate"))
    mine.edit(candidate=candidate("c"))
    mine.until("c", "Candidate")
    mine.answer("c")
    mine.evaluation(True)
    assert mine.until("c", "Current")["evaluation"]["passed"] is True
    assert mine.traffic() == mine.version("c")["name"]


def test_a_quota_that_takes_no_pod_is_told_in_its_words_and_raised_it_goes_on(mine: Endpoint) -> None:
    old = mine.serve("a")
    full = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": {"pods": "1"}}}
    mine.here.apply(full)
    wait("the quota is counted", lambda: (mine.here.get("resourcequota", "full").get("status") or {}).get("used", {}).get("pods") == "1")
    mine.edit(candidate=candidate("b"))
    wait("the refusal is told", lambda: mine.status().get("reason") == "PodNotCreated")
    told = next(c for c in mine.status()["conditions"] if c["type"] == "Progressing")
    assert "1 of 1 pods are not made" in told["message"]
    assert "exceeded quota: full" in told["message"]
    assert (mine.traffic(), mine.status()["readyReplicas"]) == (old, 1)
    mine.here.apply({**full, "spec": {"hard": {"pods": "9"}}})
    mine.answer("b")
    mine.until("b", "Current")


def test_a_job_whose_adapter_the_endpoint_cannot_serve_goes_on_when_it_can(mine: Endpoint) -> None:
    mine.edit(model={"source": "s3://models/other"})
    here = mine.here
    here.apply(finetunejob("late", inference={"endpoint": "support"}, activeDeadlineSeconds=3600))
    prepared(here, "late")
    for phase_then in ("Pending", "Deploying"):  # before a GPU is taken; and when somebody changes the endpoint meanwhile
        status = wait("what it waits for", lambda: found if (found := here.status("late")).get("reason") == "WaitingForEndpoint" else {})
        assert status["phase"] == phase_then
        assert "serves base model s3://models/other" in status["message"]
        assert next(c["status"] for c in status["conditions"] if c["type"] == "Stalled") == "True"
        mine.edit(model={"source": "s3://models/base"})
        if phase_then == "Pending":
            pod = running(here, job="late")
            mine.edit(model={"source": "s3://models/other"})
            here.end(pod, 0, TRAINED)
    wait("its adapter is proposed", lambda: here.get("modelendpoint", "support")["spec"].get("candidate", {}).get("job") == "late", 30)


def test_objects_of_a_new_version_that_are_refused_cost_nobody_an_answer_with_recreate(mine: Endpoint) -> None:
    mine.edit(strategy={"type": "Recreate", "watchSeconds": 0})
    old = mine.serve("a")
    here, services = mine.here, len(mine.here.items("services"))
    here.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": {"services": str(services)}}})
    wait("the quota is counted", lambda: (here.get("resourcequota", "full").get("status") or {}).get("used", {}).get("services") == str(services))
    mine.edit(candidate=candidate("b"))
    wait("the refusal is told", lambda: mine.status().get("reason") == "Refused")
    told = next(c for c in mine.status()["conditions"] if c["type"] == "Progressing")
    assert "exceeded quota: full" in told["message"]
    mine.edit(keepPrevious=2)  # another look
    wait("it has looked", lambda: mine.status()["observedGeneration"] == here.get("modelendpoint", "support")["metadata"]["generation"])
    assert (mine.traffic(), mine.status()["readyReplicas"], here.get("deployment", old)["spec"]["replicas"]) == (old, 1, 1)
    here.rest.delete("resourcequota", "full")
    wait("the old pods make room", lambda: not mine.pods("a"), 60)
    mine.answer("b")
    mine.until("b", "Current")


def test_an_adapter_is_merged_before_the_pods_of_its_version_start(mine: Endpoint) -> None:
    old = mine.serve("a")
    mine.edit(quantization="Merged", candidate=candidate("b"))
    pod = wait("a pod that merges", lambda: mine.here.items("pods", "finetune.dev/step=Merge"))[0]
    assert json.loads(pod["metadata"]["annotations"]["finetune.dev/config"])["adapter"] == candidate("b")["adapter"]
    assert mine.until("b", "Candidate")["name"] != old
    assert not mine.here.get("deployment", mine.version("b")["name"])
    merged = {"uri": "s3://models/ft/merged/1", "manifestSha256": "d" * 64}
    mine.here.end(pod["metadata"]["name"], 0, json.dumps({"step": "merge", "reason": "Completed", "merged": merged}))
    mine.answer("b")
    assert mine.until("b", "Current")["merged"] == merged
    config = mine.here.get("configmap", mine.traffic())["data"]["config.json"]
    assert (json.loads(config)["merged"], json.loads(config)["quantization"]) == (merged, "Merged")
    wait("the merge is cleaned up", lambda: not mine.here.items("jobs", "finetune.dev/step=Merge"))
    mine.edit(candidate=candidate("c"))
    pod = wait("a pod that merges", lambda: mine.here.items("pods", "finetune.dev/step=Merge"))[0]
    mine.here.end(pod["metadata"]["name"], 20, json.dumps({"step": "merge", "reason": "InvalidConfig", "message": "The adapter has DoRA (use_dora)"}))
    rejected = mine.until("c", "Rejected")
    assert (rejected["reason"], mine.traffic()) == ("MergeFailed", mine.version("b")["name"])
    assert "DoRA" in rejected["message"]


def test_a_version_that_crashes_after_the_switch_gives_the_traffic_back(mine: Endpoint) -> None:
    mine.edit(strategy={"watchSeconds": 60})
    old = mine.serve("a")
    mine.serve("b")
    pod = mine.pods("b")[0]
    ended = {"exitCode": 1, "reason": "Error", "message": "no GPU", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"}
    looping = {
        "name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }  # fmt: skip
    mine.here.set_pod(pod, {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [looping]})
    assert mine.until("b", "Rejected")["reason"] == "CrashLoop"
    assert (mine.traffic(), mine.version("a")["role"]) == (old, "Current")


def test_a_rollback_by_hand_and_forward_again(mine: Endpoint) -> None:
    mine.edit(keepPrevious=1)
    old, new = mine.serve("a"), mine.serve("b")
    mine.edit(version="a")
    wait("the old version has the traffic", lambda: mine.traffic() == old)
    mine.edit(version=None)
    wait("the new version has it again", lambda: mine.traffic() == new)


def test_pods_that_the_api_server_refuses_are_named_and_the_version_that_serves_is_looked_after(mine: Endpoint) -> None:
    old = mine.serve("a")
    mine.edit(resources={"tolerations": [{"key": "gpu", "operator": "Exist"}]}, replicas=2)
    [progress] = wait("what is refused", lambda: [c for c in mine.status()["conditions"] if (c["type"], c["reason"]) == ("Progressing", "Refused")])
    assert "tolerations[0].operator" in progress["message"]
    wait("two pods of the version that serves", lambda: len(mine.pods("a")) == 2)
    mine.answer("a")
    assert (mine.traffic(), mine.status()["versions"][0]["role"]) == (old, "Current")
    mine.edit(resources={"tolerations": [{"key": "gpu", "operator": "Exists"}]})
    versions = wait(
        "the corrected version", lambda: [v["name"] for v in mine.status()["versions"] if v["role"] == "Candidate" and mine.here.get("deployment", v["name"])]
    )
    wait("its pods", lambda: mine.here.items("pods", f"finetune.dev/version={versions[0]}"), 60)


def test_what_others_do_to_its_objects_is_put_right(mine: Endpoint) -> None:
    version = mine.serve("a")
    mine.here.rest.merge("service", "support", {"spec": {"selector": {"finetune.dev/version": "nonsense"}}})
    wait("the Service selects the version again", lambda: mine.traffic() == version)
    mine.here.rest.merge("deployment", version, {"spec": {"replicas": 0}})
    wait("the Deployment has its pods again", lambda: mine.here.get("deployment", version)["spec"]["replicas"] == 1)
    for kind in ("deployment", "service"):
        uid = mine.here.get(kind, version)["metadata"]["uid"]
        mine.here.rest.delete(kind, version)
        wait(f"the {kind} is made anew", partial(is_new, mine.here, kind, version, uid))
    assert mine.traffic() == version


def test_the_operator_may_end_at_any_moment_of_a_rollout(operator: Operator, mine: Endpoint) -> None:
    mine.serve("a")
    mine.edit(candidate=candidate("b"))
    mine.until("b", "Candidate")
    operator.stop(signal.SIGKILL)
    mine.answer("b")
    operator.start()
    mine.until("b", "Current")
    operator.stop(signal.SIGKILL)
    operator.start()
    mine.until("a", "Retired")
    assert mine.traffic() == mine.version("b")["name"]


def test_two_jobs_for_one_endpoint_end_with_the_later_one_served(operator: Operator, here: Namespace) -> None:
    mine = Endpoint(here)
    for letter in ("a", "b"):
        here.apply(finetunejob(letter, inference={"endpoint": "support"}))
        prepared(here, letter)
        pod = running(here, job=letter)
        here.end(pod, 0, train_message("Completed", "40 steps", step=40, loss=0.5, adapter=candidate(letter)["adapter"]))
        mine.until(letter, "Candidate")
    assert phase(here, "Failed", "a")["reason"] == "Superseded"
    mine.answer("b")
    assert phase(here, "Succeeded", "b")["endpoint"]["version"] == mine.version("b")["name"]


def test_jobs_with_names_of_their_own_end_up_served_side_by_side(operator: Operator, here: Namespace) -> None:
    mine, jobs = Endpoint(here), {"a": {}, "b": {"servedName": "rooms"}, "c": {"servedName": "bills"}}

    def on_the_way() -> None:
        """The pods of the candidate answer, and it gets the traffic."""
        version = wait("a candidate", lambda: next((v["name"] for v in mine.status().get("versions", []) if v["role"] == "Candidate"), ""))
        for pod in wait("its pods", lambda: here.items("pods", f"finetune.dev/version={version}")):
            here.run(pod["metadata"]["name"])
        wait("it has the traffic", lambda: (version, "Current") in {(v["name"], v["role"]) for v in mine.status()["versions"]})

    for letter, name in jobs.items():
        here.apply(finetunejob(letter, inference={"endpoint": "support", **name}))
        prepared(here, letter)
    pods = {letter: running(here, job=letter) for letter in jobs}
    for letter, pod in pods.items():  # the first one makes the endpoint, the others propose to it at the same time
        here.end(pod, 0, train_message("Completed", "40 steps", step=40, loss=0.5, adapter=candidate(letter)["adapter"]))
        wait("the endpoint is there", lambda: here.get("modelendpoint", "support"))
    for _ in jobs:
        on_the_way()
    wait("all names are served", lambda: mine.status()["servedNames"] == ["support", "bills", "rooms"])
    config = json.loads(here.get("configmap", mine.traffic())["data"]["config.json"])
    assert {other["name"]: other["adapter"]["manifestSha256"][0] for other in config["others"]} == {"rooms": "b", "bills": "c"}
    assert [phase(here, "Succeeded", letter)["endpoint"].get("servedName") for letter in jobs] == [None, "rooms", "bills"]
    mine.edit(adapters=[entry for entry in here.get("modelendpoint", "support")["spec"]["adapters"] if entry["name"] == "bills"])

    def one_less() -> bool:
        """Where bills came before rooms there is a version without rooms, whose pods answer still."""
        for version in (v["name"] for v in mine.status()["versions"] if v["role"] == "Candidate"):
            for pod in here.items("pods", f"finetune.dev/version={version}"):
                here.run(pod["metadata"]["name"])
        return bool(mine.status()["servedNames"] == ["support", "bills"])

    wait("one name is gone", one_less)
