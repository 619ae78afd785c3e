"""What somebody deletes of an endpoint comes back, and answers as before, to the byte."""

import pytest

from tests.e2e.cluster import get, kubectl, wait
from tests.e2e.endpoints import Endpoint, condition

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings
ASKED = ("Where am I?", "And now for something else.")


def answers(desk: Endpoint) -> list[str]:
    """Of the adapter and of the base, greedy and drawn with a seed."""
    ways = ({"temperature": 0}, {"temperature": 1.2, "seed": 7})
    return [desk.answer(question, model, **way) for model in ("desk", "base") for question in ASKED for way in ways]


def uid(desk: Endpoint, kind: str, name: str) -> str:
    """Empty when there is none."""
    return str(get(kind, name, desk.namespace).get("metadata", {}).get("uid", ""))


def ready(desk: Endpoint, version: str) -> bool:
    deployment = get("deployment", version, desk.namespace)
    return bool(deployment) and deployment.get("status", {}).get("readyReplicas", 0) == deployment["spec"]["replicas"]


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["service"], id="the service"),
        pytest.param(["configmap", "pod"], id="the pod and the configuration that the next one needs"),
        pytest.param(["deployment"], id="the deployment with its pods"),
    ],
)
def test_what_is_deleted_comes_back_and_answers_the_same(desk: Endpoint, kinds: list[str]) -> None:
    version, before = desk.current()["name"], answers(desk)
    (pod,) = desk.pods(version)
    names = {kind: {"service": desk.name, "pod": pod}.get(kind, version) for kind in kinds}
    old = {kind: uid(desk, kind, name) for kind, name in names.items()}
    for kind, name in names.items():
        kubectl("-n", desk.namespace, "delete", kind, name, "--wait=false")

    def anew(kind: str) -> bool:
        return bool(set(desk.pods(version)) - {pod}) if kind == "pod" else uid(desk, kind, names[kind]) not in ("", old[kind])

    wait(f"there is another {' and another '.join(kinds)}", lambda: all(map(anew, kinds)), 60)
    if kinds != ["service"]:
        wait("the old pod has ended", lambda: not get("pod", pod, desk.namespace), 120)
        wait("its successor answers", lambda: ready(desk, version), 240)
    status = desk.until("the endpoint says that it answers", lambda s: condition(s, "Ready").get("status") == "True", 60)
    assert [(v["name"], v["role"]) for v in status["versions"] if v["role"] in ("Current", "Candidate")] == [(version, "Current")]
    assert desk.selected() == version
    assert (pod in desk.pods(version)) == (kinds == ["service"])
    assert answers(desk) == before
