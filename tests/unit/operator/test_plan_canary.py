"""Rollouts in steps as stories: ready, then weight, then everything, then fewer pods; and the way back, which has no steps."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.observe import RouteView

from .makers import ended, names
from .story import Story, candidate, crashing, evaluation_pod, serving_pod

CANARY: dict[str, Any] = {
    "parentRefs": [{"name": "public", "namespace": "gateways"}],
    "hostnames": ["support.example.org"],
    "steps": [10, 50],
    "stepSeconds": 100,
}
GATE: dict[str, Any] = {"prompts": [{"name": "greeting", "prompt": "hello", "expect": {"contains": ["hello"]}}]}
BEFORE, AFTER = "2027-01-15T07:00:00Z", "2027-01-15T09:00:00Z"  # the story begins at 8:00


def story(**spec: Any) -> Story:
    """Version a has the traffic, version b is proposed and its pods start."""
    found = Story(**{"strategy": {"type": "Canary", "canary": CANARY, "watchSeconds": 60}, **spec})
    found.serving("a")
    found.spec["candidate"] = candidate("b")
    found.look()
    return found


def in_steps(**spec: Any) -> Story:
    """Version b has its first share."""
    found = story(**spec)
    found.up("b", spec.get("replicas", 1))
    found.look()
    assert found.weights() == {found.name("a"): 90, found.name("b"): 10}
    return found


def message(found: Story, kind: str = "Progressing") -> str:
    return str(next(c["message"] for c in found.status["conditions"] if c["type"] == kind))


def routed(found: Story) -> tuple[str, str]:
    condition = next(c for c in found.status["conditions"] if c["type"] == "Routed")
    return condition["status"], condition["reason"]


class TestSteps:
    def test_ready_then_weight_then_everything_then_fewer_pods(self) -> None:
        found = story(replicas=2)
        old, new = found.name("a"), found.name("b")
        assert found.weights() == {old: 100}
        found.up("b", 1)
        found.look()
        assert found.weights() == {old: 100}
        found.up("b", 2)
        found.look()
        assert (found.weights(), found.traffic(), found.progress()) == ({old: 90, new: 10}, old, ("True", "ShiftingTraffic"))
        assert (found.version("a")["weight"], found.version("b")["weight"], found.version("b")["step"]) == (90, 10, 10)
        assert found.plan.requeue_after == 100
        found.look(99)
        assert (found.weights(), found.plan.requeue_after) == ({old: 90, new: 10}, 1)
        found.look(1)
        assert (found.weights(), found.traffic()) == ({old: 50, new: 50}, old)
        found.look(100)
        assert (found.weights(), found.traffic(), found.roles()) == ({new: 100, old: 0}, new, {"b": "Current", "a": "Previous"})
        assert (found.replicas, "step" in found.version("b"), found.plan.delete) == ({old: 2, new: 2}, False, ())
        found.look(59)
        assert found.replicas == {old: 2, new: 2}
        found.look(2)
        assert (found.weights(), found.replicas, found.roles()) == ({new: 100}, {new: 2}, {"b": "Current", "a": "Retired"})

    def test_a_new_operator_goes_on_at_the_step_in_the_record_and_writes_the_same_route(self) -> None:
        found = in_steps()
        route = [b for b in found.plan.apply if b["kind"] == "HTTPRoute"]
        found.look(50)  # the record is all that a look has of earlier ones
        assert ([b for b in found.plan.apply if b["kind"] == "HTTPRoute"], found.plan.requeue_after) == (route, 50)

    def test_the_first_version_needs_no_steps(self) -> None:
        found = Story(strategy={"type": "Canary", "canary": CANARY})
        new = found.serving("a")
        assert (found.weights(), found.traffic()) == ({new: 100}, new)

    def test_nothing_is_moved_by_caches_alone(self) -> None:
        found = in_steps()
        before = found.status
        plan = found.look(100, live=False)
        assert (plan.look, plan.apply, plan.status) == (True, (), before)

    def test_steps_that_are_edited_on_the_way_count_from_the_share_that_was_reached(self) -> None:
        found = in_steps()
        found.spec["strategy"] = {"type": "Canary", "canary": {**CANARY, "steps": [5, 80]}}
        found.look(100)
        assert found.weights()[found.name("b")] == 80

    def test_a_version_passes_the_gate_before_it_gets_a_share(self) -> None:
        found = story()
        old, new = found.name("a"), found.up("b")
        found.spec["gate"] = GATE
        found.look()
        job = next(iter(found.jobs))
        assert (found.weights(), found.progress()[1]) == ({old: 100}, "Evaluating")
        told = '{"step": "evaluate", "reason": "Completed", "message": "", "evaluation": {"passed": true, "prompts": 1, "repeats": 3}}'
        found.pods = [evaluation_pod(job, 0, told)]
        found.look()
        assert (found.weights(), found.version("b")["evaluation"]["passed"]) == ({old: 90, new: 10}, True)
        found.spec["gate"] = {**GATE, "minPassRate": "1"}
        found.pods = []
        found.look()
        assert (found.weights(), found.version("b")["step"], found.progress()[1]) == ({old: 100}, 0, "Evaluating")

    def test_a_larger_endpoint_waits_for_its_new_pods_before_the_next_step(self) -> None:
        found = in_steps()
        found.spec["replicas"] = 3
        found.ready[found.name("a")] = 3
        found.look()
        found.look(200)
        assert found.weights() == {found.name("a"): 90, found.name("b"): 10}
        found.up("b", 3)
        found.look()
        assert found.weights()[found.name("b")] == 50

    def test_a_candidate_that_another_one_overtakes_gives_its_share_back_in_one_write(self) -> None:
        found = in_steps()
        found.spec["candidate"] = candidate("c")
        found.look()
        assert (found.weights(), found.roles()) == ({found.name("a"): 100}, {"a": "Current", "c": "Candidate", "b": "Retired"})

    def test_where_the_old_version_answers_nobody_the_candidate_gets_everything_for_as_long(self) -> None:
        found = in_steps()
        old, new = found.name("a"), found.name("b")
        found.ready[old] = 0
        found.look()
        assert (found.weights(), found.version("b")["step"], found.traffic()) == ({old: 0, new: 100}, 10, old)
        found.ready[old] = 1
        found.look()
        assert found.weights() == {old: 90, new: 10}

    def test_an_endpoint_that_is_scaled_to_zero_moves_at_once_when_a_pod_has_shown_that_the_version_answers(self) -> None:
        found = story()
        found.spec["replicas"] = 0
        found.look()
        assert (found.replicas, found.roles()["b"]) == ({found.name("a"): 0, found.name("b"): 1}, "Candidate")
        found.up("b")
        found.look()
        assert (found.weights(), found.roles()["b"]) == ({found.name("b"): 100, found.name("a"): 0}, "Current")


class TestWayBack:
    CRASH = ended(139, "segmentation fault")
    FAULTS: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("a crash loop", {"waiting_reason": "CrashLoopBackOff", "restarts": 2, "ended": CRASH, "created_at": AFTER}, "CrashLoop"),
        ("a single crash of a pod that has answered", {"restarts": 1, "ended": CRASH, "running": True, "created_at": BEFORE}, "CrashLoop"),
        ("a pod that ceases to answer", {"running": True, "created_at": BEFORE}, "LostReadiness"),
    )

    @pytest.mark.parametrize(("pod", "reason"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
    @pytest.mark.parametrize("left", [0, 1], ids=["of its only pod", "while another pod answers"])
    def test_takes_the_share_back_and_gives_the_version_up(self, pod: dict[str, Any], reason: str, left: int) -> None:
        found = in_steps(replicas=2)
        old, new = found.name("a"), found.name("b")
        found.ready[new] = left
        found.pods = [serving_pod(new, **pod), serving_pod(new, name="other", ready=True, created_at=BEFORE)]
        found.look()
        assert (found.weights(), found.traffic(), found.roles()) == ({old: 100}, old, {"a": "Current", "b": "Rejected"})
        assert (found.version("b")["reason"], "had 10 % of the requests" in found.version("b")["message"]) == (reason, True)
        assert "weight" not in found.version("b")
        found.pods = []
        found.look(1000)
        assert found.roles() == {"a": "Current", "b": "Rejected"}

    HARMLESS: tuple[tuple[str, dict[str, Any]], ...] = (
        ("an eviction", {"disruption": "EvictionByEvictionAPI", "created_at": BEFORE}),
        ("a deletion by hand", {"deleting": True, "created_at": BEFORE}),
        ("a pod in the place of one that went", {"created_at": AFTER}),
        ("its first crash while it starts", {"restarts": 1, "ended": CRASH, "created_at": AFTER, "running": True}),
    )

    @pytest.mark.parametrize("pod", [h[1] for h in HARMLESS], ids=[h[0] for h in HARMLESS])
    def test_what_is_not_the_versions_fault_only_takes_the_share_of_one_without_pods(self, pod: dict[str, Any]) -> None:
        found = in_steps(replicas=2)
        old, new = found.name("a"), found.name("b")
        found.pods = [serving_pod(new, **pod)]
        found.ready[new] = 1
        found.look(200)
        assert (found.weights(), found.roles()["b"]) == ({old: 90, new: 10}, "Candidate")
        found.ready[new] = 0
        found.look()
        assert (found.weights(), found.roles()["b"], found.version("b")["step"]) == ({old: 100}, "Candidate", 0)
        found.pods, found.ready[new] = [], 2
        found.look()
        assert found.weights() == {old: 90, new: 10}

    def test_one_that_gave_its_share_back_has_its_whole_time_to_answer_again(self) -> None:
        found = in_steps(strategy={"type": "Canary", "canary": {**CANARY, "stepSeconds": 1000}, "timeoutSeconds": 600})
        found.look(700)
        found.ready[found.name("b")] = 0
        found.look()
        found.look(500)
        assert found.roles()["b"] == "Candidate"
        found.look(100)
        assert found.version("b")["reason"] == "NotReadyInTime"

    def test_without_auto_rollback_it_keeps_its_share_as_long_as_a_pod_answers(self) -> None:
        found = in_steps(replicas=2, autoRollback=False)
        old, new = found.name("a"), found.name("b")
        found.pods, found.ready[new] = [crashing(new, 3)], 1
        found.look(200)
        assert (found.weights(), found.progress()) == ({old: 90, new: 10}, ("True", "CrashLoop"))
        found.ready[new] = 0
        found.look()
        assert (found.weights(), found.roles()["b"]) == ({old: 100}, "Candidate")

    def test_a_crash_after_the_last_step_gives_everything_back_in_one_write(self) -> None:
        found = in_steps()
        old, new = found.name("a"), found.name("b")
        found.look(100)
        found.look(100)
        assert found.weights() == {new: 100, old: 0}
        found.pods = [crashing(new, 1)]
        found.look(10)
        assert (found.weights(), found.traffic(), found.roles()) == ({old: 100}, old, {"a": "Current", "b": "Rejected"})

    def test_a_pin_on_the_version_with_the_traffic_ends_the_steps(self) -> None:
        found = in_steps()
        found.spec["version"] = "a"
        found.look()
        assert (found.weights(), found.roles()) == ({found.name("a"): 100}, {"a": "Current", "b": "Retired"})

    def test_a_rollback_by_hand_has_no_steps_and_the_way_forward_again_has(self) -> None:
        found = in_steps(keepPrevious=1)
        old, new = found.name("a"), found.name("b")
        found.look(100)
        found.look(100)
        found.look(100)
        found.spec["version"] = "a"
        found.look()
        assert (found.weights(), found.traffic()) == ({old: 100, new: 0}, old)
        del found.spec["version"]
        found.look()
        assert (found.weights(), found.traffic()) == ({old: 90, new: 10}, old)

    def test_a_pin_on_the_candidate_ends_the_steps_with_everything(self) -> None:
        found = in_steps()
        found.spec["version"] = "b"
        found.look()
        assert (found.weights(), found.traffic()) == ({found.name("b"): 100, found.name("a"): 0}, found.name("b"))


class TestGateway:
    def test_without_the_gateway_api_the_version_stands_by_and_the_cure_is_told(self) -> None:
        found = story()
        found.gateway_api, found.route = False, None
        old = found.name("a")
        found.up("b")
        found.look()
        assert (found.traffic(), found.weights(), found.roles()) == (old, {}, {"a": "Current", "b": "Candidate"})
        assert (found.progress(), routed(found)) == (("True", "GatewayAPIMissing"), ("False", "GatewayAPIMissing"))
        assert "install the Gateway API" in message(found)
        assert "set spec.strategy.type to BlueGreen" in message(found)
        assert "weight" not in found.version("a")
        found.gateway_api = True
        found.look()
        assert found.weights() == {old: 100}
        found.look()
        assert (found.weights(), routed(found)) == ({old: 90, found.name("b"): 10}, ("True", "Routed"))

    def test_without_the_gateway_api_the_first_version_is_served_all_the_same(self) -> None:
        found = Story(strategy={"type": "Canary", "canary": CANARY})
        found.gateway_api = False
        assert found.serving("a") == found.traffic()
        assert (found.weights(), found.status["reason"]) == ({}, "Ready")

    def test_what_a_gateway_has_against_the_route_is_told_and_no_step_is_taken(self) -> None:
        found = in_steps()
        found.route = RouteView("support", "uid-1", "route-1", accepted=False, refusal="Gateway public: NotAllowedByListeners: no routes from team")
        found.look(500)
        assert found.weights() == {found.name("a"): 90, found.name("b"): 10}
        assert (found.progress(), routed(found)) == (("True", "RouteRefused"), ("False", "RouteRefused"))
        assert "NotAllowedByListeners: no routes from team" in message(found)
        assert "NotAllowedByListeners: no routes from team" in message(found, "Routed")

    def test_a_route_that_nobody_has_accepted_yet_waits(self) -> None:
        found = story()
        assert found.route
        found.route = replace(found.route, accepted=False)
        found.up("b")
        found.look()
        assert (found.weights(), routed(found)) == ({found.name("a"): 100}, ("Unknown", "Starting"))
        assert "Gateway gateways/public exists" in message(found)

    def test_another_strategy_takes_the_route_away(self) -> None:
        found = in_steps()
        found.spec["strategy"] = {"type": "BlueGreen"}
        plan = found.look()
        assert [(r.kind, r.name, r.uid) for r in plan.delete if r.kind == "HTTPRoute"] == [("HTTPRoute", "support", "route-1")]
        assert (found.traffic(), found.weights(), "weight" in found.version("b")) == (found.name("b"), {}, False)
        assert "Routed" not in [c["type"] for c in found.status["conditions"]]
        assert found.look().delete == ()

    def test_a_route_to_a_version_that_went_before_its_traffic_was_on_record_goes_too(self) -> None:
        found = Story(strategy={"type": "Canary", "canary": CANARY, "timeoutSeconds": 60}, candidate=candidate("a"))
        found.look()
        found.route = RouteView("support", "uid-1", "route-1", accepted=True)
        plan = found.look(100)
        assert found.roles() == {"a": "Rejected"}
        assert [(ref.kind, ref.uid) for ref in plan.delete if ref.kind == "HTTPRoute"] == [("HTTPRoute", "route-1")]

    def test_the_route_has_every_field_that_the_api_server_would_fill_in(self) -> None:
        found = in_steps()
        route = next(b for b in found.plan.apply if b["kind"] == "HTTPRoute")
        assert names(found.plan.apply)[:2] == ["HTTPRoute/support", "Service/support"]
        assert route["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
        group = "gateway.networking.k8s.io"
        backends = [{"group": "", "kind": "Service", "name": found.name(v), "port": 80, "weight": w} for v, w in (("a", 90), ("b", 10))]
        assert route["spec"] == {
            "parentRefs": [{"group": group, "kind": "Gateway", "name": "public", "namespace": "gateways"}],
            "hostnames": ["support.example.org"],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": backends}],
        }

    def test_a_version_of_an_older_spec_has_a_service_for_its_share(self) -> None:
        found = story(maxLength=512)
        old = found.name("a")
        found.spec["maxLength"] = 1024
        found.look()
        assert f"Service/{old}" in names(found.plan.apply)
