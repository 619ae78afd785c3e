"""Live adapters on the cluster: a name comes into the pod that serves the others, through the gate, and goes again."""

import time

import pytest

from tests.e2e.cluster import items, kubectl
from tests.e2e.endpoints import VERSION, Endpoint, in_role, settled
from tests.e2e.voices import QUESTIONS, sentence

# The engine, the sidecar and the operator are each tested alone (tests/runtime/test_serve_live.py, tests/integration/test_endpoint_live.py).
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # the first test also waits for both trainings


def test_a_name_comes_and_goes_without_another_pod(desk: Endpoint) -> None:
    spec, before = desk.spec, desk.current()
    try:
        desk.put({**spec, "adapterLoading": "Live", "maxAdapters": 2})
        status = desk.until("a version in pods that take adapters", lambda s: settled(s) and in_role(s, "Current").get("host"), 400)
        host = in_role(status, "Current")["host"]
        assert desk.selected() == host
        pods = desk.pods(host)
        assert len(pods) == 1
        started = time.monotonic()
        desk.merge(adapters=[{"name": "lobby", "job": "blue", "adapter": before["adapter"]}])
        status = desk.until("the new name is served", lambda s: settled(s) and "lobby" in s["servedNames"], 300)
        print(f"served after {time.monotonic() - started:.0f} s, the questions of the gate with them")
        version = in_role(status, "Current")
        assert desk.pods(host) == pods
        assert (version["host"], version["servedName"], version["evaluation"]["passed"]) == (host, "lobby", True)
        assert desk.answer(QUESTIONS[0], "lobby") == desk.answer(QUESTIONS[0]) == sentence("blue")
        assert {model.id for model in desk.client().models.list()} == {"base", status["servedName"], "lobby"}
        # What comes in the place of a pod brings itself to the same list before it is ready.
        (pod,) = desk.pods(host)
        kubectl("-n", desk.namespace, "delete", "pod", pod, "--wait=false")
        desk.until("another pod serves both", lambda s: set(desk.pods(host)) != {pod} and s["readyReplicas"] == 1 and len(desk.pods(host)) == 1, 300)
        assert desk.answer(QUESTIONS[1], "lobby") == sentence("blue")
        desk.merge(adapters=[])
        desk.until("the name is gone", lambda s: settled(s) and s["servedNames"] == [status["servedName"]], 120)
        assert desk.answer(QUESTIONS[2]) == sentence("blue")
        assert {d["metadata"]["labels"][VERSION] for d in items("deployments", desk.namespace, "finetune.dev/endpoint=desk")} == {host}
    finally:
        desk.put(spec)
    desk.until("the endpoint is as it was", lambda s: settled(s) and in_role(s, "Current").get("name") == before["name"], 300)
