"""Rollouts as stories: who has the traffic, which pods stay, and what brings a version back."""

from typing import Any

import pytest

from finetune_operator.observe import Ended

from .makers import START, ended, names, result
from .story import Story, candidate, crashing, serving_pod


def test_the_first_version_gets_its_own_objects_and_no_traffic_before_it_answers() -> None:
    story = Story(candidate=candidate("a"))
    plan = story.look()
    version = story.name("a")
    assert names(plan.apply) == [f"Deployment/{version}", f"ConfigMap/{version}", f"Service/{version}"]
    assert (story.roles(), story.progress(), story.status["reason"]) == ({"a": "Candidate"}, ("True", "Starting"), "Starting")
    story.up("a")
    story.look()
    assert (story.traffic(), story.roles(), story.progress()) == (version, {"a": "Current"}, ("False", "UpToDate"))
    assert (story.status["readyReplicas"], story.status["selector"]) == (1, f"finetune.dev/endpoint=support,finetune.dev/version={version}")
    assert (names(story.plan.apply)[0], names(story.plan.apply)[-1]) == ("Service/support", "PodDisruptionBudget/support")


class TestBlueGreen:
    def test_the_old_version_keeps_traffic_and_pods_until_all_pods_of_the_new_one_answer(self) -> None:
        story = Story(replicas=2)
        old = story.serving("a")
        story.spec["candidate"] = candidate("b")
        story.look()
        story.up("b", 1)
        story.look()
        assert (story.traffic(), story.roles()) == (old, {"a": "Current", "b": "Candidate"})
        story.up("b", 2)
        story.look()
        assert (story.traffic(), story.roles()) == (story.name("b"), {"b": "Current", "a": "Previous"})
        assert (story.replicas[old], story.plan.delete) == (2, ())

    def test_the_old_pods_stay_while_the_new_version_is_watched_and_go_afterwards(self) -> None:
        story = Story(strategy={"watchSeconds": 60})
        old = story.serving("a")
        new = story.serving("b")
        assert story.look(58).delete == ()
        plan = story.look(2)
        assert [(r.kind, r.name) for r in plan.delete] == [("Service", old), ("ConfigMap", old), ("ConfigMap", f"{old}-gate"), ("Deployment", old)]
        assert (story.roles(), list(story.replicas)) == ({"b": "Current", "a": "Retired"}, [new])

    def test_old_pods_are_never_gone_in_the_moment_of_the_switch(self) -> None:
        story = Story(strategy={"watchSeconds": 0})
        story.serving("a")
        story.serving("b")
        assert (story.plan.delete, story.plan.requeue_after) == ((), 5)
        assert len(story.look(5).delete) == 4

    def test_one_pod_of_each_previous_version_is_kept_as_asked(self) -> None:
        story = Story(replicas=3, keepPrevious=1, strategy={"watchSeconds": 60})
        first, second = story.serving("a"), story.serving("b")
        story.look(120)
        third = story.serving("c")
        story.look(120)
        assert (story.roles(), story.replicas) == ({"c": "Current", "b": "Previous", "a": "Retired"}, {second: 1, third: 3})
        assert first not in story.replicas

    def test_a_new_name_is_told_when_pods_that_go_by_it_have_the_traffic(self) -> None:
        story = Story(servedName="desk")
        old = story.serving("a")
        story.spec["servedName"] = "front"
        story.look()
        assert (story.traffic(), story.status["servedName"], story.status["servedNames"]) == (old, "desk", ["desk"])
        story.up("a")
        story.look()
        assert (story.traffic(), story.status["servedName"], story.status["servedNames"]) == (story.name("a"), "front", ["front"])
        story.spec["version"] = old
        story.look()
        assert (story.traffic(), story.status["servedName"]) == (old, "desk"), "pods that are kept are brought back as they are"

    def test_a_candidate_that_another_one_overtakes_goes(self) -> None:
        story = Story()
        story.serving("a")
        story.spec["candidate"] = candidate("b")
        story.look()
        lost = story.name("b")
        story.spec["candidate"] = candidate("c")
        plan = story.look()
        assert [r.name for r in plan.delete] == [lost, lost, f"{lost}-gate", lost]
        assert (story.version("b")["role"], story.version("b")["reason"]) == ("Retired", "Superseded")

    def test_however_fast_versions_follow_each_other_only_the_last_one_stands_by(self) -> None:
        story = Story(strategy={"watchSeconds": 3600})
        first, second = story.serving("a"), story.serving("b")
        story.look(60)
        third = story.serving("c")
        assert set(story.replicas) == {first, second, third}
        story.look(10)
        assert (story.roles(), set(story.replicas)) == ({"c": "Current", "b": "Previous", "a": "Retired"}, {second, third})


class TestRecreate:
    def test_the_new_pods_come_when_the_old_ones_have_ended(self) -> None:
        story = Story(strategy={"type": "Recreate"})
        old = story.serving("a")
        story.pods = [serving_pod(old, running=True, ready=True)]
        story.spec["candidate"] = candidate("b")
        story.look()
        assert (story.replicas, story.progress()) == ({old: 1, story.name("b"): 0}, ("True", "Recreating"))
        story.look()
        assert (story.replicas, story.progress()) == ({old: 0, story.name("b"): 0}, ("True", "Recreating"))
        story.pods = []
        story.look()
        assert story.replicas == {old: 0, story.name("b"): 1}

    def test_what_is_refused_is_heard_while_the_old_version_answers(self) -> None:
        story = Story(strategy={"type": "Recreate"})
        old = story.serving("a")
        story.pods = [serving_pod(old, running=True, ready=True)]
        story.spec["candidate"] = candidate("b")
        for _ in range(3):
            story.look(30, refused={story.name("b"): "Deployment: denied by policy"})
            assert (story.replicas, story.progress(), story.status["reason"]) == ({old: 1}, ("True", "Refused"), "Refused")
            assert story.condition("Ready") == ("True", "Ready")

    def test_while_nobody_answers_ready_says_what_the_new_version_waits_for(self) -> None:
        story = Story(strategy={"type": "Recreate"})
        story.serving("a")
        story.spec["candidate"] = candidate("b")
        for _ in range(3):
            story.look()
        story.pods = [serving_pod(story.name("b"), phase="Pending", unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu")]
        story.look()
        assert (story.condition("Ready"), story.status["reason"]) == (("False", "Unschedulable"), "Unschedulable")

    def test_a_node_that_is_lost_for_good_is_named_and_the_old_version_comes_back_in_time(self) -> None:
        story = Story(strategy={"type": "Recreate", "timeoutSeconds": 600})
        old = story.serving("a")
        story.pods = [serving_pod(old, node="n7", deleting=True)]
        story.spec["candidate"] = candidate("b")
        for _ in range(3):
            story.look()
        assert (story.progress(), story.replicas) == (("True", "Recreating"), {old: 0, story.name("b"): 0})
        assert f"waiting for pod {old}-p on node n7 to end. If that node is lost for good, delete its Node object" in story.message("Progressing")
        story.look(600)
        assert (story.roles(), story.replicas) == ({"a": "Current", "b": "Rejected"}, {old: 1})

    def test_one_that_may_have_the_traffic_by_a_round_that_was_cut_short_keeps_its_pods(self) -> None:
        story = Story(strategy={"type": "Recreate"}, replicas=2)
        old = story.serving("a")
        story.status["versions"][0]["role"] = "Previous"
        story.spec.pop("candidate")
        story.look(10_000)
        assert (story.roles(), story.replicas) == ({"a": "Previous"}, {old: 2})

    def test_the_old_version_comes_back_when_the_new_one_is_given_up(self) -> None:
        story = Story(strategy={"type": "Recreate"})
        old = story.serving("a")
        story.spec["candidate"] = candidate("b")
        story.look()
        story.pods = [crashing(story.name("b"), 5)]
        story.look()
        assert (story.traffic(), story.replicas) == (old, {old: 1})


class TestGivenUp:
    def story(self, **spec: Any) -> Story:
        story = Story(**spec)
        story.serving("a")
        story.spec["candidate"] = candidate("b")
        story.look()
        return story

    def test_a_version_that_crashes_again_and_again(self) -> None:
        story = self.story()
        old, new = story.name("a"), story.name("b")
        story.pods = [crashing(new, 4)]
        story.look()
        assert story.progress() == ("True", "CrashLoop")
        story.pods = [crashing(new, 5)]
        plan = story.look()
        assert (story.traffic(), story.roles(), story.progress()) == (old, {"a": "Current", "b": "Rejected"}, ("False", "CrashLoop"))
        assert [r.name for r in plan.delete if r.kind == "Deployment"] == [new]
        assert story.status["reason"] == "CrashLoop"

    def test_storage_that_is_down_is_waited_for_until_the_time_is_over(self) -> None:
        story = self.story(strategy={"timeoutSeconds": 3600})
        down = ended(40, result("fetch", "StorageUnavailable", "the storage does not answer"), container="fetch")
        story.pods = [serving_pod(story.name("b"), waiting_reason="CrashLoopBackOff", restarts=20, ended=down)]
        story.look(1800)
        assert (story.roles()["b"], story.progress()) == ("Candidate", ("True", "FetchFailed"))
        story.look(1800)
        assert (story.version("b")["reason"], "the storage does not answer" in story.version("b")["message"]) == ("NotReadyInTime", True)

    def test_one_that_crashes_does_not_get_the_traffic_when_nobody_wants_pods_any_more(self) -> None:
        story = self.story()
        old = story.name("a")
        story.spec["replicas"] = 0
        story.pods = [crashing(story.name("b"), 4)]
        story.look()
        assert (story.traffic(), story.replicas) == (old, {old: 0, story.name("b"): 1})
        story.pods = [crashing(story.name("b"), 5)]
        story.look()
        assert (story.traffic(), story.roles()) == (old, {"a": "Current", "b": "Rejected"})

    def test_one_that_does_not_answer_in_time_tells_how_its_last_try_ended(self) -> None:
        story = self.story(strategy={"timeoutSeconds": 100})
        killed = Ended("main", 137, "OOMKilled", "", START)
        story.pods = [serving_pod(story.name("b"), running=True, phase="Running", restarts=2, ended=killed)]
        story.look(100)
        record = story.version("b")
        assert (record["reason"], "loads the model again: the container used more memory" in record["message"]) == ("NotReadyInTime", True)

    def test_one_that_does_not_answer_in_time(self) -> None:
        story = self.story(strategy={"timeoutSeconds": 600})
        story.look(598)
        assert story.progress()[0] == "True"
        story.look(2)
        assert (story.version("b")["reason"], "600 s (spec.strategy.timeoutSeconds)" in story.version("b")["message"]) == ("NotReadyInTime", True)

    def test_one_whose_adapter_can_never_be_served_at_once(self) -> None:
        story = self.story()
        broken = ended(20, result("fetch", "InvalidConfig", "trained on another base"), container="fetch")
        story.pods = [serving_pod(story.name("b"), waiting_reason="CrashLoopBackOff", restarts=1, ended=broken)]
        story.look()
        assert (story.version("b")["reason"], "trained on another base" in story.version("b")["message"]) == ("FetchFailed", True)

    def test_a_wrong_adapter_is_cured_by_a_right_one(self) -> None:
        story = self.story()
        broken = ended(20, result("fetch", "InvalidConfig", "trained on another base"), container="fetch")
        story.pods = [serving_pod(story.name("b"), waiting_reason="CrashLoopBackOff", restarts=1, ended=broken)]
        story.look()
        story.pods = []
        story.serving("c")
        assert (story.roles(), story.status["reason"]) == ({"c": "Current", "a": "Previous", "b": "Rejected"}, "Ready")

    def test_nothing_is_given_up_without_auto_rollback(self) -> None:
        story = self.story(autoRollback=False, strategy={"timeoutSeconds": 60})
        story.pods = [crashing(story.name("b"), 50)]
        story.look(10_000)
        assert (story.roles()["b"], story.progress()) == ("Candidate", ("True", "CrashLoop"))

    def test_what_was_given_up_stays_so_until_something_else_is_asked_for(self) -> None:
        story = self.story()
        story.pods = [crashing(story.name("b"), 5)]
        story.look()
        story.pods = []
        story.look(1000)
        assert (story.roles()["b"], story.progress()) == ("Rejected", ("False", "CrashLoop"))
        story.spec["version"] = "b"  # somebody insists
        story.look()
        assert story.roles()["b"] == "Candidate"

    def test_one_whose_pods_the_api_server_refuses_is_tried_for_as_long_as_it_has_to_answer(self) -> None:
        story = self.story(strategy={"timeoutSeconds": 600})
        old, new = story.name("a"), story.name("b")
        refused = {new: f'Deployment {new}: spec.template.spec.tolerations[0].operator: Unsupported value: "Exist"'}
        story.replicas.pop(new)
        plan = story.look(refused=refused)
        assert (story.traffic(), story.roles(), story.progress()) == (old, {"a": "Current", "b": "Candidate"}, ("True", "Refused"))
        assert new not in {body["metadata"]["name"] for body in plan.apply}
        assert plan.requeue_after == 30
        story.look()
        assert new in story.plan.untried
        assert old not in story.plan.untried
        story.look(600, refused=refused)
        assert (story.roles()["b"], '"Exist"' in story.version("b")["message"]) == ("Rejected", True)

    def test_a_pod_that_no_node_takes_is_waited_for(self) -> None:
        story = self.story()
        story.pods = [serving_pod(story.name("b"), phase="Pending", unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")]
        story.look()
        assert story.progress() == ("True", "Unschedulable")


def test_caches_are_not_enough_to_move_traffic_or_to_delete() -> None:
    story = Story(candidate=candidate("a"))
    story.look()
    before = story.status
    story.up("a")
    plan = story.look(live=False)
    assert (plan.look, plan.apply, plan.status) == (True, (), before)
    assert not story.look().look


def test_history_is_kept_short() -> None:
    story = Story(strategy={"watchSeconds": 0})
    for number in range(12):
        adapter = {"uri": "s3://models/ft/adapter", "manifestSha256": f"{number:064x}"}
        story.spec["candidate"] = {"job": f"job-{number}", "jobUid": str(number), "adapter": adapter}
        story.look()
        story.ready = dict.fromkeys(story.replicas, 1)
        story.look()
        story.look(10)
    assert [v["job"] for v in story.status["versions"]] == [f"job-{n}" for n in (11, 10, 9, 8, 7, 6)]


def test_a_deleted_deployment_of_a_kept_version_comes_back() -> None:
    story = Story(keepPrevious=1, strategy={"watchSeconds": 0})
    old, new = story.serving("a"), story.serving("b")
    story.look(10)
    story.replicas.clear()
    story.look()
    assert story.replicas == {new: 1, old: 1}


def test_a_deleted_deployment_that_todays_spec_cannot_make_is_told_with_its_cure() -> None:
    story = Story(keepPrevious=1, strategy={"watchSeconds": 0})
    _, old = story.serving("a"), story.serving("b")
    story.look(10)
    story.spec |= {"maxLength": 64, "version": old}
    story.look()
    story.replicas.clear()
    del story.spec["version"]
    story.spec["candidate"] = candidate("c")
    story.look()
    ready = next(c for c in story.status["conditions"] if c["type"] == "Ready")
    assert (ready["reason"], f"set spec.version to {old}" in ready["message"]) == ("DeploymentDeleted", True)
    assert story.roles() == {"b": "Current", "c": "Candidate", "a": "Retired"}
    story.spec["version"] = old
    story.look()
    assert story.name("b") in story.replicas


@pytest.mark.parametrize("strategy", ["BlueGreen", "Recreate"])
def test_a_gate_that_is_edited_into_nonsense_in_mid_rollout_takes_nothing_from_users(strategy: str) -> None:
    story = Story(strategy={"type": strategy})
    old = story.serving("a")
    story.look(1000)
    story.spec["candidate"] = candidate("b")
    story.look()
    if strategy == "Recreate":
        story.ready[old] = 0
        story.look()
        assert story.replicas[old] == 0
    story.spec["gate"] = {"prompts": [{"name": "p", "prompt": "x", "expect": {"regex": "("}}]}
    story.look()
    assert (story.roles(), story.replicas, story.progress()[1]) == ({"a": "Current", "b": "Retired"}, {old: 1}, "InvalidSpec")
    del story.spec["gate"]
    story.look()
    story.look()
    assert story.roles()["b"] == "Candidate", "it is tried again when the gate is right"
