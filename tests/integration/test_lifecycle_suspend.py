"""spec.suspend and the clocks of a job: what is shown, and what runs, at every moment."""

import time
from typing import Any

import pytest

from tests.integration.history import History
from tests.integration.job import TRAINED, deleting, finetunejob, interrupted, name_of, phase, prepared, reason, running, training
from tests.integration.operator_process import Namespace, Operator, wait

SERVED_ELSEWHERE = {"inference": {"endpoint": "shared"}}


def suspended(here: Namespace, pod: str) -> dict[str, Any]:
    """Suspend a job and let its pod end with a checkpoint. Returns the status once it is suspended."""
    here.edit(suspend=True)
    deleting(here, pod)
    assert reason(here, "Suspending")["phase"] == "Training", "the pod still commits its checkpoint"
    here.end(pod, 10, interrupted(20), ago=3600)
    here.gone(pod)
    return phase(here, "Suspended")


def test_a_running_training_is_suspended_after_its_checkpoint_and_goes_on_in_the_same_attempt(
    operator: Operator, here: Namespace, history: History, node: str
) -> None:
    here.apply(finetunejob())
    first = training(here, node=node)
    status = suspended(here, first)
    assert "activeSince" not in status
    assert here.get("job", "support-train-1")["spec"]["suspend"] is True
    time.sleep(1)
    assert not here.items("pods", "finetune.dev/step=Train")
    here.edit(suspend=False)
    here.end(running(here, not_named=first), 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["interruptions"], status["attempt"], status["failures"]) == (0, 1, {})
    assert history.milestones() == [
        "Training Running", "Training Suspending", "Suspended Suspended", "Training Running", "Succeeded Completed",
    ]  # fmt: skip


def test_a_job_that_is_suspended_before_anything_has_started_starts_nothing_until_it_is_resumed(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob(suspend=True))
    phase(here, "Suspended")
    time.sleep(2)
    assert not here.items("jobs,pods")
    here.edit(suspend=False)
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")
    assert history.story()[0] == "Suspended Suspended"
    assert history.milestones()[-1] == "Succeeded Completed"


def test_a_job_that_is_suspended_while_its_data_are_checked_checks_them_again(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob())
    first = name_of(here.pod("Prepare"))
    here.run(first)
    reason(here, "Running")
    here.edit(suspend=True)
    phase(here, "Suspended")
    assert not here.items("pods")
    here.edit(suspend=False)
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    assert phase(here, "Succeeded")["interruptions"] == 0
    assert [line for line in history.milestones() if "Suspend" in line][-1] == "Suspended Suspended"


def test_a_job_whose_time_is_over_fails_and_nothing_of_it_runs_on(operator: Operator, here: Namespace, history: History, node: str) -> None:
    here.apply(finetunejob(activeDeadlineSeconds=4))
    pod = training(here, node=node)
    status = phase(here, "Failed")
    assert status["reason"] == "DeadlineExceeded"
    assert "spec.activeDeadlineSeconds is 4" in status["message"]
    deleting(here, pod)
    here.end(pod, 10, interrupted(20))
    here.gone(pod)
    wait("nothing is left of the training", lambda: not here.items("jobs", "finetune.dev/step=Train") and not here.get("pod", pod))
    assert history.milestones()[-2:] == ["Training Running", "Failed DeadlineExceeded"]


def test_time_in_which_a_job_is_suspended_does_not_count(operator: Operator, here: Namespace, history: History, node: str) -> None:
    here.apply(finetunejob(activeDeadlineSeconds=8))
    first = training(here, node=node)
    suspended(here, first)
    time.sleep(8)
    assert here.status()["phase"] == "Suspended"
    here.edit(suspend=False)
    running(here, not_named=first)
    assert here.status()["activeSeconds"] < 8
    phase(here, "Failed")
    assert history.milestones()[-3:] == ["Suspended Suspended", "Training Running", "Failed DeadlineExceeded"]


def test_a_job_whose_time_to_be_kept_is_over_deletes_itself_and_leaves_a_named_endpoint(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob(ttlSecondsAfterFinished=2, **SERVED_ELSEWHERE))
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    here.run(name_of(wait("a serving pod", lambda: here.items("pods", "finetune.dev/endpoint=shared"))[0]))
    phase(here, "Succeeded")
    wait("the job is gone", lambda: not here.get("finetunejob", "support"))
    wait("its Jobs are gone too", lambda: not here.items("jobs"))
    assert here.get("modelendpoint", "shared")["spec"]["candidate"]["job"] == "support"
    assert here.items("deployments", "finetune.dev/endpoint=shared")
    assert history.milestones()[-1] == "Succeeded Completed"


@pytest.mark.parametrize("seconds", [0, 3600], ids=["at once", "an hour later"])
def test_a_job_that_owns_its_endpoint_may_not_delete_itself(here: Namespace, seconds: int) -> None:
    said = here.kubectl.refused("apply", "-f", "-", stdin=finetunejob(ttlSecondsAfterFinished=seconds, inference={}))
    assert "name the endpoint with inference.endpoint" in said


def test_a_job_that_has_failed_deletes_itself_too(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(ttlSecondsAfterFinished=1))
    here.end(name_of(here.pod("Prepare")), 21, '{"step": "prepare", "reason": "DataInvalid", "message": "train.jsonl:7: empty answer"}')
    wait("the job is gone", lambda: not here.get("finetunejob", "support"))


def test_a_job_that_is_suspended_after_its_end_stays_as_it_ended(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    before = phase(here, "Succeeded")
    here.edit(suspend=True)
    time.sleep(2)
    generation = before["observedGeneration"] + 1
    assert here.status() == {**before, "observedGeneration": generation, "conditions": [{**c, "observedGeneration": generation} for c in before["conditions"]]}
