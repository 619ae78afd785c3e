"""Children that somebody deletes, edits, owns or has named alike."""

import json
import time
from functools import partial
from typing import Any

from tests.integration.history import History
from tests.integration.job import TRAINED, finetunejob, interrupted, name_of, phase, prepared, reason, running, training
from tests.integration.operator_process import Namespace, Operator, wait


def config_map(here: Namespace) -> dict[str, Any]:
    return next((c for c in here.items("configmaps", "finetune.dev/job=support")), {})


def foreign_job(name: str) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}


def test_jobs_that_are_deleted_after_the_end_are_not_missed(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    before = phase(here, "Succeeded")
    time.sleep(1)
    begin = max(e.version for e in history.events())
    here.kubectl("delete", "jobs,configmaps", "-l", "finetune.dev/job=support", "--wait=true")
    wait("the pods are gone", lambda: not here.items("pods"))
    time.sleep(3)
    assert here.status() == before
    assert not here.items("jobs")
    assert not [e for e in history.events(begin) if e.kind == "finetunejobs"], "the status is not even written again"


def test_a_deleted_job_gets_no_second_pod_while_the_first_one_still_ends(operator: Operator, here: Namespace, node: str) -> None:
    here.apply(finetunejob())
    first = training(here, node=node)
    here.kubectl("delete", "job", "support-train-1", "--wait=false")
    status = reason(here, "Terminating")
    assert f"waiting for pod {first} on node {node} to end" in status["message"]
    time.sleep(2)
    assert [name_of(p) for p in here.items("pods", "finetune.dev/step=Train")] == [first]
    here.end(first, 10, interrupted(20))
    here.gone(first)
    second = running(here, not_named=first)
    here.end(second, 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["attempt"], status["failures"]) == (1, {})


def test_a_job_that_is_suspended_by_hand_is_resumed(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.pod("Train")
    here.rest.merge("jobs", "support-train-1", {"spec": {"suspend": True}})
    wait("it is resumed", lambda: here.get("job", "support-train-1")["spec"]["suspend"] is False)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")


def test_a_job_that_is_resumed_by_hand_is_suspended_again(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    prepared(here)
    here.pod("Train")
    here.edit(suspend=True)
    phase(here, "Suspended")
    here.rest.merge("jobs", "support-train-1", {"spec": {"suspend": False}})
    wait("it is suspended", lambda: here.get("job", "support-train-1")["spec"]["suspend"] is True)
    wait("no pod is left", lambda: not here.items("pods", "finetune.dev/step=Train"))
    phase(here, "Suspended")


def test_a_configuration_that_is_edited_by_hand_is_put_right_when_the_operator_looks_again(operator: Operator, here: Namespace) -> None:
    """It is not watched: within TRUST and RESYNC (apply.py, reconcile.py), and at once by an operator that has just started."""
    here.apply(finetunejob())
    here.pod("Prepare")
    before = config_map(here)
    here.rest.merge("configmaps", name_of(before), {"data": {"config.json": "{}"}})
    operator.stop()
    operator.start()
    wait("the configuration is as it was", lambda: config_map(here)["data"]["config.json"] == before["data"]["config.json"])


def test_a_job_of_somebody_else_is_left_alone_and_waited_for(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(foreign_job("support-train-1"))
    before = here.get("job", "support-train-1")
    here.apply(finetunejob())
    prepared(here)
    assert "Job support-train-1 exists and belongs to somebody else" in reason(here, "NameConflict")["message"]
    time.sleep(1)
    after = here.get("job", "support-train-1")
    assert (after["metadata"]["uid"], after["metadata"]["generation"], after["spec"]) == (before["metadata"]["uid"], 1, before["spec"])
    here.kubectl("delete", "job", "support-train-1")
    reason(here, "Starting", seconds=45)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")
    assert [line for line in history.milestones() if line != "Training Running"] == ["Pending NameConflict", "Succeeded Completed"]


def test_what_goes_with_a_predecessor_of_the_same_name_is_waited_for_and_is_nobody_elses(operator: Operator, here: Namespace, history: History) -> None:
    here.apply(finetunejob())
    old = name_of(here.pod("Prepare"))
    here.rest.merge("jobs", "support-prep-1", {"metadata": {"finalizers": ["example.org/hold"]}})
    here.rest.delete("finetunejob", "support")
    wait("the garbage collector has come", lambda: "deletionTimestamp" in here.get("job", "support-prep-1")["metadata"])
    here.apply(finetunejob())
    time.sleep(1)
    here.rest.merge("jobs", "support-prep-1", {"metadata": {"finalizers": None}})
    wait("the old pod is gone", lambda: not here.get("pods", old))
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")
    assert not [line for line in history.milestones() if "NameConflict" in line]


def test_jobs_whose_names_look_like_each_others_children_do_not_meet(operator: Operator, here: Namespace) -> None:
    names = ("a", "a-train-1", "a-prep-1", "a-config")
    here.apply(*(finetunejob(name, inference={}) for name in names))
    for name in names:
        prepared(here, name)
    for name in names:
        here.end(name_of(here.pod("Train", job=name)), 0, TRAINED)
    for name in names:
        here.run(name_of(wait("a serving pod", partial(here.items, "pods", f"finetune.dev/endpoint={name}"))[0]))
        phase(here, "Succeeded", name)
    uids = {name: here.get("finetunejob", name)["metadata"]["uid"] for name in names}
    for job in here.items("jobs"):
        assert job["metadata"]["ownerReferences"][0]["uid"] == uids[job["metadata"]["labels"]["finetune.dev/job"]]
    assert len(here.items("jobs")) == 2 * len(names)


def test_an_endpoint_that_another_job_takes_with_it_when_it_goes_is_not_taken(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob("one", inference={}), finetunejob("two", inference={"endpoint": "one"}))
    for name in ("one", "two"):
        prepared(here, name)
    here.end(name_of(here.pod("Train", job="one")), 0, TRAINED)
    here.run(name_of(wait("a serving pod", lambda: here.items("pods", "finetune.dev/endpoint=one"))[0]))
    phase(here, "Succeeded", "one")
    here.end(name_of(here.pod("Train", job="two")), 0, TRAINED)
    status = reason(here, "NameConflict", "two")
    assert "name another endpoint" in status["message"]
    assert status["artifact"]["adapter"]["uri"], "the adapter is not lost"
    assert here.get("modelendpoint", "one")["spec"]["candidate"]["job"] == "one"


def test_a_job_that_is_made_anew_under_its_name_does_not_take_the_old_ones_pods_for_its_own(operator: Operator, here: Namespace, node: str) -> None:
    here.apply(finetunejob())
    old = training(here, node=node)
    here.kubectl("delete", "finetunejob", "support", "--wait=true")
    here.apply(finetunejob())
    wait("the old pod is asked to end", lambda: "deletionTimestamp" in here.get("pod", old)["metadata"])
    prepared(here)
    new = running(here, not_named=old)
    config = {v["name"]: v.get("configMap", {}).get("name") for v in here.get("pod", new)["spec"]["volumes"]}["config"]
    made = json.loads(here.get("configmap", config)["data"]["config.json"])
    assert made["job"]["uid"] == here.get("finetunejob", "support")["metadata"]["uid"]
    here.end(old, 10, interrupted(20))
    here.gone(old)
    here.end(new, 0, TRAINED)
    status = phase(here, "Succeeded")
    assert (status["interruptions"], [a["number"] for a in status["attempts"]]) == (0, [1, 1])


def test_an_operator_of_another_version_leaves_a_running_training_alone(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob(retries={"limit": 1, "backoffSeconds": 1}))
    pod = training(here)
    before = here.get("job", "support-train-1")
    operator.stop()
    operator.environment["FINETUNE_TRAINER_IMAGE"] = "trainer:next"
    operator.start()
    time.sleep(2)
    assert here.get("job", "support-train-1")["metadata"]["generation"] == before["metadata"]["generation"]
    assert name_of(here.pod("Train")) == pod
    here.end(pod, 1)
    second = here.pod("Train", 2)
    assert second["spec"]["containers"][0]["image"] == "trainer:next"
    here.end(name_of(second), 0, TRAINED)
    phase(here, "Succeeded")
