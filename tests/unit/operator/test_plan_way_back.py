"""The way back as stories: what takes the traffic from a version soon after it got it, and what spec.version brings back."""

from typing import Any

import pytest

from .makers import ended, result
from .story import Story, candidate, crashing, serving_pod


class TestWatch:
    def story(self, **spec: Any) -> Story:
        story = Story(**{"strategy": {"watchSeconds": 120}, **spec})
        story.serving("a")
        story.serving("b")
        return story

    def test_a_version_that_crashes_soon_after_the_switch_gives_the_traffic_back(self) -> None:
        story = self.story()
        story.pods = [crashing(story.name("b"), 1)]
        plan = story.look(60)
        assert (story.traffic(), story.roles(), story.progress()) == (story.name("a"), {"a": "Current", "b": "Rejected"}, ("False", "CrashLoop"))
        assert [r.name for r in plan.delete if r.kind == "Deployment"] == [story.name("b")]
        story.look(600)
        assert story.roles() == {"a": "Current", "b": "Rejected"}

    CALM: tuple[tuple[str, dict[str, Any], float, int], ...] = (
        ("after its time it is on its own", {}, 121, 3),
        ("without auto rollback it keeps the traffic", {"autoRollback": False}, 60, 3),
        ("a single crash without a loop is the kubelet's business", {}, 60, 0),
    )

    @pytest.mark.parametrize(("spec", "seconds", "restarts"), [c[1:] for c in CALM], ids=[c[0] for c in CALM])
    def test_otherwise_the_traffic_stays(self, spec: dict[str, Any], seconds: float, restarts: int) -> None:
        story = self.story(**spec)
        story.pods = [crashing(story.name("b"), restarts)]
        story.look(seconds)
        assert (story.traffic(), story.roles()["b"]) == (story.name("b"), "Current")

    def test_a_new_pod_that_does_not_reach_the_storage_is_not_the_versions_fault(self) -> None:
        story = self.story()
        down = ended(40, result("fetch", "StorageUnavailable", "the storage does not answer"), container="fetch")
        story.pods = [serving_pod(story.name("b"), waiting_reason="CrashLoopBackOff", restarts=3, ended=down)]
        story.look(60)
        assert (story.traffic(), story.roles()["b"]) == (story.name("b"), "Current")

    def test_one_crash_is_enough_when_nobody_else_answers(self) -> None:
        story = self.story()
        story.ready[story.name("b")] = 0
        killed = ended(137, "INFO loading", "OOMKilled")
        story.pods = [serving_pod(story.name("b"), restarts=1, running=True, ended=killed)]
        story.look(30)
        assert (story.traffic(), story.roles()["b"]) == (story.name("a"), "Rejected")
        assert "raise spec.resources.memory" in story.version("b")["message"]

    def test_an_evicted_pod_is_not_the_versions_fault(self) -> None:
        story = self.story()
        story.ready[story.name("b")] = 0
        story.pods = [serving_pod(story.name("b"), disruption="EvictionByEvictionAPI", restarts=1, ended=ended(143, ""))]
        story.look(30)
        assert story.roles()["b"] == "Current"

    def test_traffic_never_goes_back_to_pods_that_do_not_answer(self) -> None:
        story = self.story()
        story.ready[story.name("a")] = 0
        story.pods = [crashing(story.name("b"), 9)]
        story.look(60)
        assert story.traffic() == story.name("b")


class TestPinned:
    def test_a_pin_that_is_taken_back_leaves_the_way_back_that_answers(self) -> None:
        story = Story(keepPrevious=1, strategy={"watchSeconds": 60})
        story.serving("a")
        story.look(100)
        ready = story.serving("b")
        story.look(100)
        assert story.roles()["a"] == "Previous"
        story.serving("c")
        story.look(100)
        story.look(100)
        assert story.roles() == {"a": "Retired", "b": "Previous", "c": "Current"}
        story.ready.pop(story.name("a"), None)
        story.spec["version"] = "a"
        story.look()
        assert story.roles()["a"] == "Candidate"
        story.spec.pop("version")
        story.look()
        story.look(100)
        assert (story.roles(), ready in story.replicas) == ({"a": "Retired", "b": "Previous", "c": "Current"}, True)

    @pytest.mark.parametrize("gate", [None, {"evalLoss": {"max": "1"}}], ids=["without a gate", "with one"])
    def test_one_that_crashed_under_its_pin_is_not_taken_up_again_because_that_is_gone(self, gate: dict[str, Any] | None) -> None:
        story = Story(keepPrevious=1, strategy={"watchSeconds": 120})
        story.serving("a")
        story.spec |= {"gate": gate, "version": "b", "candidate": candidate("b", evalLoss="0.5")}
        story.look()
        story.up("b")
        story.look()
        story.pods = [crashing(story.name("b"), 1)]
        story.look(10)
        unnamed = {"version": None, "candidate": candidate("b", evalLoss="0.5")}
        for change in ({}, {"candidate": candidate("c", evalLoss="9")}, unnamed):
            story.spec |= change
            story.look()
            story.look()
            assert (story.traffic(), story.version("b")["role"]) == (story.name("a"), "Rejected"), change
        story.spec["version"] = "b"  # somebody names it anew
        story.look()
        assert story.version("b")["role"] == "Candidate"

    def test_a_rollback_by_hand_takes_the_kept_pod_and_leaves_the_new_version_for_later(self) -> None:
        story = Story(replicas=2, keepPrevious=1, strategy={"watchSeconds": 10})
        story.serving("a")
        story.serving("b")
        story.look(60)
        story.spec["version"] = "a"
        story.look()
        assert (story.traffic(), story.roles(), story.replicas[story.name("b")]) == (story.name("a"), {"a": "Current", "b": "Previous"}, 2)
        del story.spec["version"]
        story.look()
        assert (story.traffic(), story.roles()) == (story.name("b"), {"b": "Current", "a": "Previous"})

    def test_a_version_without_pods_is_made_anew_before_it_gets_the_traffic(self) -> None:
        story = Story(strategy={"watchSeconds": 0})
        old = story.serving("a")
        story.serving("b")
        story.look(10)
        assert old not in story.replicas
        story.ready[old] = 0
        story.spec["version"] = old
        story.look()
        assert (story.traffic(), story.replicas[old]) == (story.name("b"), 1)
        story.up("a")
        story.look()
        assert story.traffic() == old

    def test_one_made_by_an_older_spec_keeps_its_pods_as_they_are(self) -> None:
        story = Story(keepPrevious=1, strategy={"watchSeconds": 0})
        old = story.serving("a")
        story.spec["maxLength"] = 64
        story.serving("b")
        story.look(10)
        assert story.replicas[old] == 1
        story.spec["version"] = old
        plan = story.look()
        assert (story.traffic(), [b for b in plan.apply if b["kind"] == "Deployment" and b["metadata"]["name"] == old]) == (old, [])

    def test_a_job_by_its_name_is_the_version_of_it_that_had_the_traffic(self) -> None:
        story = Story(strategy={"watchSeconds": 0})
        story.serving("a")
        story.serving("b")
        story.look(10)
        story.spec |= {"maxLength": 64, "candidate": candidate("a")}
        story.look()
        story.spec["candidate"] = candidate("c")
        story.look()  # a newer version of job a was on its way, and never had it
        story.spec["version"] = "a"
        for _ in range(3):  # its pods are made anew by today's spec, and that goes on
            story.look()
            assert story.progress()[0] == "True", story.progress()
        story.up("a")
        story.look()
        assert story.traffic() == story.name("a")

    def test_new_candidates_wait_behind_a_pin(self) -> None:
        story = Story(version="a", candidate=candidate("a"))
        story.look()
        story.up("a")
        story.look()
        story.spec["candidate"] = candidate("b")
        story.look()
        assert (story.roles(), story.progress()) == ({"a": "Current"}, ("False", "UpToDate"))

    def test_a_name_that_nobody_knows_changes_nothing_and_says_what_there_is(self) -> None:
        story = Story()
        old = story.serving("a")
        story.spec["version"] = "typo"
        story.look()
        assert (story.traffic(), story.progress()) == (old, ("False", "VersionNotFound"))
        message = next(c["message"] for c in story.status["conditions"] if c["type"] == "Progressing")
        assert old in message

    def test_a_version_that_never_had_the_traffic_cannot_be_named_once_it_is_not_the_candidate(self) -> None:
        story = Story()
        story.serving("a")
        story.spec["candidate"] = candidate("b")
        story.look()
        story.pods = [crashing(story.name("b"), 5)]
        story.look()
        story.pods = []
        story.spec |= {"candidate": candidate("c"), "version": "b"}
        story.look()
        assert story.progress() == ("False", "VersionNotFound")
