"""The gate between training and traffic: what passes, what does not, and that nobody notices what does not."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster import content, get, wait
from tests.e2e.conftest import Jobs
from tests.e2e.endpoint.conftest import training
from tests.e2e.endpoints import Endpoint, condition, in_role, settled
from tests.e2e.voices import QUESTIONS, sentence

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings
FIGURES = ("latencyP50Seconds", "latencyP95Seconds", "timeToFirstTokenSeconds", "tokensPerSecond")


@pytest.fixture
def unnoticed(desk: Endpoint) -> Iterator[dict[str, Any]]:
    """The version with the traffic: at the end of the test it has the same pods, never restarted, the traffic, and the same answers."""

    def look() -> tuple[str, str, dict[str, tuple[str, int]], list[str]]:
        version = desk.current()["name"]
        return version, desk.selected(), desk.pods(version), [desk.answer(question) for question in QUESTIONS[:3]]

    spec, before = desk.spec, look()
    assert before[0] == before[1]
    yield in_role(desk.status(), "Current")
    assert look() == before
    desk.put(spec)
    desk.until("the endpoint is as it was", lambda s: settled(s) and condition(s, "Progressing")["reason"] == "UpToDate", 30)


def gone(desk: Endpoint, version: str) -> None:
    wait(f"nothing is left of {version}", lambda: not desk.objects(version), 120)


def test_an_adapter_that_passes_gets_the_traffic_and_the_numbers_stand_in_both_objects(desk: Endpoint, shared: Jobs) -> None:
    status = shared.status("blue")
    found = status["evaluation"]
    assert (found["passed"], found["prompts"], found["repeats"]) == (True, 2, 2)
    assert float(found["candidate"]["passRate"]) == 1
    assert float(found["candidate"]["consistency"]) == 1
    assert float(found["base"]["passRate"]) == 0
    assert all(float(found["candidate"][figure]) > 0 for figure in FIGURES), found["candidate"]
    assert "current" not in found, "there was no version before this one"
    assert condition(status, "Evaluated")["status"] == "True"
    version = desk.current()
    assert (version["job"], version["evaluation"]) == ("blue", found)
    assert desk.selected() == version["name"]
    page = content(found["report"]).decode()
    assert all(word in page for word in ("greeting", "place", "Good morning!", sentence("blue")))


def test_a_bad_adapter_closes_the_gate_and_nobody_notices(desk: Endpoint, shared: Jobs, blue_rows: str, unnoticed: dict[str, Any]) -> None:
    shared.submit("dull", **training("blue", blue_rows, learningRate="1e-9"), evaluation={"evalLoss": {"max": "20"}})
    status = wait("the job has failed", lambda: s if (s := shared.status("dull")).get("phase") == "Failed" else {}, 300)
    assert status["reason"] == "GateClosed"
    assert "pass rate 0.00 is below minPassRate 1" in status["message"]
    assert "notWorseThanCurrent" in status["message"]
    found = status["evaluation"]
    assert (found["passed"], float(found["candidate"]["passRate"]), float(found["current"]["passRate"])) == (False, 0, 1)
    assert set(found["failedPrompts"]) == {"greeting", "place"}
    assert status["artifact"]["adapter"]["uri"], "the adapter stays"
    version = in_role(desk.status(), "Rejected", "dull")
    assert (version["reason"], version["evaluation"]) == ("GateClosed", found)
    page = content(found["report"]).decode()
    assert sentence("blue") in page, "the answers of the version that has the traffic stand beside the candidate's"
    gone(desk, version["name"])


def test_a_bound_on_the_evaluation_loss_closes_the_gate_before_a_pod_is_made(desk: Endpoint, shared: Jobs, unnoticed: dict[str, Any]) -> None:
    adapter = get("finetunejob", "dull", shared.namespace)["status"]["artifact"]["adapter"]
    desk.propose("by-hand", adapter, evalLoss="6.5", evaluation={"evalLoss": {"max": "1.5"}})
    status = desk.until("the candidate is refused", lambda s: in_role(s, "Rejected", "by-hand"), 30)
    version = in_role(status, "Rejected", "by-hand")
    assert version["reason"] == "GateClosed"
    assert "6.5" in version["message"]
    assert "1.5" in version["message"]
    assert desk.objects(version["name"]) == []


NOWHERE = {"uri": "s3://finetune/e2e/nowhere/adapter", "manifestSha256": "0" * 64}


def nowhere(desk: Endpoint) -> None:
    desk.propose("by-hand", NOWHERE)


def little_memory(desk: Endpoint) -> None:
    desk.merge(resources={"memory": "200Mi"}, strategy={"timeoutSeconds": 60})


HOPELESS = [
    pytest.param(nowhere, "FetchFailed", "holds no committed adapter", 120, id="an adapter that is not there"),
    pytest.param(little_memory, "NotReadyInTime", "raise spec.resources.memory", 180, id="an engine that its memory limit kills"),
]


@pytest.mark.parametrize(("propose", "reason", "words", "seconds"), HOPELESS)
def test_a_candidate_whose_pods_crash_is_given_up(
    desk: Endpoint, unnoticed: dict[str, Any], propose: Callable[[Endpoint], None], reason: str, words: str, seconds: float
) -> None:
    known = {v["name"] for v in desk.status()["versions"]}
    propose(desk)

    def given_up(status: dict[str, Any]) -> list[dict[str, Any]]:
        return [v for v in status["versions"] if v["role"] == "Rejected" and v["name"] not in known]

    (version,) = given_up(desk.until("the candidate is given up", given_up, seconds))
    assert version["reason"] == reason
    assert words in version["message"]
    progressing = condition(desk.status(), "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", reason)
    gone(desk, version["name"])
