"""What somebody deletes of an endpoint comes back, and answers as before, to the byte."""

import pytest

from tests.e2e.cluster import get, kill, kubectl, wait
from tests.e2e.endpoints import Endpoint, condition

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings
ASKED = ("Where am I?", "And now for something else.")


def answers(desk: Endpoint) -> list[str]:
    """Of the adapter and of the base, greedy and drawn with a seed."""
    ways = ({"temperature": 0}, {"temperature": 1.2, "seed": 7})
    return [desk.answer(question, model, **way) for model in ("desk", "base") for question in ASKED for way in ways]


def ready(desk: Endpoint, version: str) -> bool:
    deployment = get("deployment", version, desk.namespace)
    return bool(deployment) and deployment.get("status", {}).get("readyReplicas", 0) == deployment["spec"]["replicas"]


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        pytest.param("service", 30, id="the service"),
        pytest.param("configmap", 30, id="the configuration"),
        pytest.param("pod", 180, id="the pod"),
        pytest.param("deployment", 180, id="the deployment with its pods"),
    ],
)
def test_what_is_deleted_comes_back_and_answers_the_same(desk: Endpoint, kind: str, seconds: float) -> None:
    version, before = desk.current()["name"], answers(desk)
    (pod,) = desk.pods(version)
    name = {"service": desk.name, "pod": pod}.get(kind, version)
    uid = get(kind, name, desk.namespace)["metadata"]["uid"]
    kubectl("-n", desk.namespace, "delete", kind, name, "--wait=false")
    if kind == "pod":
        wait("another pod is made", lambda: set(desk.pods(version)) - {pod}, 30)
    else:
        wait(f"another {kind} is made", lambda: get(kind, name, desk.namespace).get("metadata", {}).get("uid", uid) != uid, 30)
    if kind in ("pod", "deployment"):
        wait("the old pod has ended", lambda: not get("pod", pod, desk.namespace), 120)
        wait("its successor answers", lambda: ready(desk, version), seconds)
    else:
        assert list(desk.pods(version)) == [pod], "its pod has nothing to do with it"
    status = desk.until("the endpoint says that it answers", lambda s: condition(s, "Ready").get("status") == "True", seconds)
    assert [(v["name"], v["role"]) for v in status["versions"] if v["role"] in ("Current", "Candidate")] == [(version, "Current")]
    assert desk.selected() == version
    assert answers(desk) == before


def test_an_engine_that_is_killed_comes_back_in_its_pod_and_answers_the_same(desk: Endpoint) -> None:
    version, before = desk.current()["name"], answers(desk)
    (pod, (uid, restarts)), *_ = desk.pods(version).items()
    assert kill(desk.namespace, pod)
    wait("it is started again", lambda: desk.pods(version).get(pod) == (uid, restarts + 1), 60)
    desk.until("the status notices", lambda s: condition(s, "Ready").get("status") == "False", 30)
    desk.until("it answers again", lambda s: condition(s, "Ready").get("status") == "True" and ready(desk, version), 180)
    assert answers(desk) == before
