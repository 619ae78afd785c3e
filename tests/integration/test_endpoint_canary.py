"""Rollouts in steps with the Gateway API's real kinds; the tests say what a Gateway's controller would say."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.foreign_kinds import installed
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, now, wait
from tests.integration.test_endpoint import Endpoint, candidate, endpoint

Body = dict[str, Any]
STEP = 3.0  # seconds
CANARY: Body = {"parentRefs": [{"name": "public"}], "hostnames": ["support.example.org"], "steps": [10, 50], "stepSeconds": int(STEP)}
STRATEGY: Body = {"type": "Canary", "canary": CANARY, "watchSeconds": 5}
ACCEPTED, REFUSED = ("True", "Accepted", "accepted"), ("False", "NotAllowedByListeners", "no routes from this namespace")


@pytest.fixture(scope="module")
def crd(cluster: Kubectl) -> Iterator[None]:
    """HTTPRoutes as the API server knows them, without a Gateway."""
    with installed(cluster, "gateway-api", "sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"):
        yield


class Routed(Endpoint):
    """An endpoint behind a Gateway."""

    def route(self) -> Body:
        return self.here.get("httproute", "support")

    def says(self, accepted: tuple[str, str, str]) -> None:
        """A Gateway's controller has looked at the route as it is now."""
        route = wait("the HTTPRoute", self.route)
        status, reason, message = accepted
        told = {"type": "Accepted", "status": status, "reason": reason, "message": message}
        condition = {**told, "lastTransitionTime": now(), "observedGeneration": route["metadata"]["generation"]}
        parent = {"parentRef": route["spec"]["parentRefs"][0], "controllerName": "example.org/gateway", "conditions": [condition]}
        self.here.rest.merge("httproute", "support", {"status": {"parents": [parent]}}, "status")

    def weights(self) -> dict[str, int]:
        rules = self.route().get("spec", {}).get("rules", [{"backendRefs": []}])
        return {b["name"]: b["weight"] for b in rules[0]["backendRefs"]}

    def progress(self) -> str:
        return next((str(c["reason"]) for c in self.status().get("conditions", []) if c["type"] == "Progressing"), "")

    def routed(self) -> tuple[str, str]:
        return next(((str(c["status"]), str(c["reason"])) for c in self.status().get("conditions", []) if c["type"] == "Routed"), ("", ""))

    def named(self, letter: str) -> str:
        return str(self.version(letter).get("name", ""))

    def step(self, letter: str) -> int:
        """The version's first share. Returns it in percent."""
        self.edit(candidate=candidate(letter))
        self.until(letter, "Candidate")
        self.answer(letter)
        return wait(f"a share for {letter}", lambda: self.weights().get(self.named(letter), 0))


def test_the_gateway_api_may_come_after_the_operator(operator: Operator, here: Namespace, request: pytest.FixtureRequest) -> None:
    mine = Routed(here)
    here.apply(endpoint(strategy=STRATEGY))
    old = mine.serve("a")
    mine.edit(candidate=candidate("b"))
    mine.until("b", "Candidate")
    mine.answer("b")
    wait("it says what is missing", lambda: mine.progress() == "GatewayAPIMissing")
    assert (mine.traffic(), mine.version("b")["role"]) == (old, "Candidate")
    request.getfixturevalue("crd")
    wait("the operator ends, because only one that starts can watch a new kind", operator.has_ended, 60)
    operator.start()
    wait("the route gives everything to the version with the traffic", lambda: mine.weights() == {old: 100})
    mine.says(REFUSED)
    wait("the refusal is told", lambda: mine.progress() == "RouteRefused")
    assert "no routes from this namespace" in str(mine.status()["conditions"])
    mine.says(ACCEPTED)
    wait("the first step", lambda: mine.weights() == {old: 90, mine.named("b"): 10})


@pytest.fixture
def mine(crd: None, process: Operator, here: Namespace) -> Routed:
    """Version a has the traffic, and a Gateway has accepted the route. The operator has started with the Gateway API there."""
    if not process.running:
        process.start()
    here.apply(endpoint(strategy=STRATEGY))
    found = Routed(here)
    found.serve("a")
    found.says(ACCEPTED)
    return found


def test_ready_then_weight_then_everything_then_fewer_pods(mine: Routed) -> None:
    old = mine.named("a")
    begun = time.time()
    assert mine.step("b") == 10
    new = mine.named("b")
    assert (mine.weights(), mine.traffic(), len(mine.pods("a"))) == ({old: 90, new: 10}, old, 1)
    wait("the second step", lambda: mine.weights() == {old: 50, new: 50})
    wait("the record says so", lambda: mine.version("b").get("weight") == 50)
    assert (mine.traffic(), mine.progress()) == (old, "ShiftingTraffic")
    wait("everything", lambda: mine.weights() == {new: 100, old: 0})
    assert time.time() - begun >= 2 * STEP - 1, "times are written in whole seconds"
    mine.until("b", "Current")
    assert (mine.traffic(), len(mine.pods("a"))) == (new, 1)
    mine.until("a", "Retired")
    wait("only the new version is left", lambda: mine.weights() == {new: 100})
    wait("the old version's pods are gone", lambda: not mine.here.items("pods", f"finetune.dev/version={old}"))


def test_a_route_that_the_api_server_refuses_is_told_and_holds_up_only_the_steps(mine: Routed) -> None:
    old = mine.named("a")
    twice = {**CANARY, "parentRefs": [{"name": "public"}, {"name": "public"}]}  # the Gateway API wants a sectionName for each
    mine.edit(strategy={**STRATEGY, "canary": twice}, replicas=2, candidate=candidate("b"))
    mine.until("b", "Candidate")
    mine.answer("b")
    wait("the refusal is told", lambda: mine.progress() == "RouteRefused")
    assert mine.routed() == ("False", "RouteRefused")
    assert "parentRefs" in next(c["message"] for c in mine.status()["conditions"] if c["type"] == "Routed")
    wait("it is scaled all the same", lambda: len(mine.pods("a")) == 2)
    assert (mine.traffic(), mine.weights(), mine.version("b")["role"]) == (old, {old: 100}, "Candidate")


def test_a_crash_in_a_step_takes_the_share_back(mine: Routed) -> None:
    old = mine.named("a")
    mine.edit(strategy={**STRATEGY, "canary": {**CANARY, "stepSeconds": 600}})
    mine.step("b")
    ended = {"exitCode": 139, "reason": "Error", "message": "", "startedAt": now(), "finishedAt": now()}
    looping = {
        "name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }  # fmt: skip
    mine.here.set_pod(mine.pods("b")[0], {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [looping]})
    assert mine.until("b", "Rejected")["reason"] == "CrashLoop"
    assert (mine.weights(), mine.traffic()) == ({old: 100}, old)


def test_an_operator_that_dies_in_a_step_goes_on_where_it_was(process: Operator, mine: Routed) -> None:
    mine.edit(strategy={**STRATEGY, "canary": {**CANARY, "stepSeconds": 600}})
    assert mine.step("b") == 10
    since = wait("the step is on record", lambda: mine.version("b").get("stepSince"))
    generation = mine.route()["metadata"]["generation"]
    process.stop(signal.SIGKILL)
    process.start()
    mine.edit(keepPrevious=1)
    time.sleep(2)
    assert (mine.version("b")["stepSince"], mine.route()["metadata"]["generation"]) == (since, generation)
    mine.edit(version="b")
    wait("everything", lambda: mine.weights().get(mine.named("b")) == 100)


def test_what_others_do_to_the_route_is_put_right_and_another_strategy_removes_it(mine: Routed) -> None:
    old, uid = mine.named("a"), mine.route()["metadata"]["uid"]
    edited = {**mine.route()["spec"]["rules"][0], "backendRefs": [{"name": "nobody", "port": 80}]}
    mine.here.rest.merge("httproute", "support", {"spec": {"rules": [edited]}})
    wait("the route leads to the version again", lambda: mine.weights() == {old: 100})
    mine.here.rest.delete("httproute", "support")
    wait("the route is made anew", lambda: mine.route().get("metadata", {"uid": uid})["uid"] != uid)
    mine.edit(strategy={"type": "BlueGreen", "canary": None})
    wait("the route is gone", lambda: not mine.route())
    wait("nothing is said of it", lambda: "weight" not in mine.version("a"))
    mine.here.apply({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "support"},
        "spec": {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": [{"name": "else", "port": 80}]}]},
    })  # fmt: skip
    mine.edit(strategy=STRATEGY)
    wait("a foreign route of that name is a conflict", lambda: mine.routed() == ("False", "NameConflict"))
    assert mine.weights() == {"else": 1}
    mine.edit(candidate=candidate("b"))
    mine.until("b", "Candidate")
    mine.answer("b")
    wait("the new version stands by", lambda: mine.progress() == "NameConflict")
    assert next((c["status"], c["reason"]) for c in mine.status()["conditions"] if c["type"] == "Ready") == ("True", "Ready")
    mine.here.rest.delete("httproute", "support")
    wait("ours is made", mine.route, 45)
    mine.says(ACCEPTED)
    wait("a share", lambda: mine.weights().get(mine.named("b"), 0) == 10, 60)
