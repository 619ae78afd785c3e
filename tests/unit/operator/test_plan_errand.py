"""Pods of an endpoint that nobody makes, and those of its merges and evaluations that are lost: what is said of them, and for how long they are waited for."""

import pytest

from finetune_operator import clock
from finetune_operator.observe import Ended

from .makers import result
from .story import Story, candidate, evaluation, serving_pod

GATE = {"prompts": [{"name": "room", "prompt": "What is the code of room 7?", "expect": {"contains": ["41"]}}]}


def evaluating() -> tuple[Story, str]:
    """A version whose evaluation has just begun, and the Job that is to ask it."""
    story = Story(strategy={"timeoutSeconds": 600}, gate=GATE)
    story.spec["candidate"] = candidate("a")
    story.look()
    story.up("a")
    story.look()
    [job] = story.jobs
    story.jobs[job] = evaluation(job, started_at=clock.text(story.now))
    return story, job


class TestPodsThatNobodyMakes:
    QUOTA = 'pods "support-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 1, limited: 1'

    @pytest.mark.parametrize("ready", [0, 1], ids=["none at all", "one of two"])
    def test_the_words_of_who_refuses_them_are_there(self, ready: int) -> None:
        story = Story(strategy={"timeoutSeconds": 600}, replicas=2)
        story.serving("a")
        story.spec["candidate"] = candidate("b")
        new = story.up("b", ready)
        story.refusals[new] = self.QUOTA
        story.pods = [serving_pod(new, running=True, ready=True)] * ready
        story.look()
        story.look()
        message = story.message("Progressing")
        assert (story.progress(), story.status["reason"]) == (("True", "PodNotCreated"), "PodNotCreated")
        assert f"{2 - ready} of 2 pods are not made" in message
        assert self.QUOTA in message
        story.look(700)
        assert (story.version("b")["reason"], self.QUOTA in story.version("b")["message"]) == ("NotReadyInTime", True)

    def test_the_pod_that_an_evaluation_lacks_is_missed_after_a_while_and_waited_for_as_long_as_anything(self) -> None:
        story, job = evaluating()
        plan = story.look(1)
        assert (story.progress(), plan.requeue_after) == (("True", "Evaluating"), 89)
        story.look(89)
        assert story.progress() == ("True", "PodNotCreated")
        assert f"kubectl describe job {job}" in story.message("Progressing")
        story.look(600)
        assert story.version("a")["reason"] == "NotReadyInTime"


class TestErrandWhosePodIsLost:
    """A merge or an evaluation may take longer than a version has to answer."""

    def test_the_next_pod_has_its_time(self) -> None:
        story, job = evaluating()
        story.now += 7200
        story.pods = [serving_pod(job, uid="gone", step="Evaluate", gone=True, gone_at=story.now, controller=job)]
        story.look()
        assert story.progress() == ("True", "Evaluating")
        pod = serving_pod(job, step="Evaluate", phase="Pending", created_at=clock.text(story.now), unschedulable="0/3 nodes are available")
        story.pods = [pod]
        story.look(500)
        assert story.progress() == ("True", "Unschedulable")
        story.look(100)
        assert story.version("a")["reason"] == "NotReadyInTime"

    def test_while_the_controller_waits_to_try_again_the_cause_is_what_the_last_pod_said(self) -> None:
        story, job = evaluating()
        words = ("the first one", "storage does not answer", "storage still does not answer")
        ends = [Ended("main", 40, "Error", result("evaluate", "StorageUnavailable", text), clock.text(story.now + 100 * n)) for n, text in enumerate(words)]
        pods = [serving_pod(job, name=f"p{n}", uid=f"p{n}", step="Evaluate", phase="Failed", ended=end) for n, end in enumerate(ends)]
        story.pods = [pods[1], pods[2], pods[0]]
        story.look(200)
        assert (story.progress(), story.plan.requeue_after) == (("True", "Evaluating"), 90)
        assert "the last one: storage still does not answer" in story.message("Progressing")
