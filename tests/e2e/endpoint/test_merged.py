"""Quantization Merged on the cluster: the adapter becomes part of its base, and the version says by how much that changes its answers."""

import pytest

from tests.e2e.cluster import content, items
from tests.e2e.endpoints import Endpoint, in_role, settled
from tests.e2e.voices import QUESTIONS

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings


def test_a_merged_version_takes_over_with_the_same_answers_and_tells_what_it_changes(desk: Endpoint) -> None:
    spec, before = desk.spec, desk.current()
    answers = [desk.answer(question) for question in QUESTIONS[:3]]
    try:
        desk.put({**spec, "quantization": "Merged"})
        status = desk.until("a merged version has the traffic", lambda s: settled(s) and in_role(s, "Current").get("merged"), 400)
        version = in_role(status, "Current")
        assert (version["adapter"], version["name"] != before["name"]) == (before["adapter"], True)
        assert b'"Merged"' in content(f"{version['merged']['uri']}/manifest.json")
        assert [model.id for model in desk.client().models.list()] == [status["servedName"]]
        assert [desk.answer(question) for question in QUESTIONS[:3]] == answers
        drift = version["evaluation"]["quantizationDrift"]
        assert (drift["trained"], drift["served"], "unmeasured" in drift) == ("nf4", "Merged", False)
        assert float(drift["logprobDifference"]) < 1
        assert not items("jobs", desk.namespace, "finetune.dev/step=Merge")
    finally:
        desk.put(spec)
    desk.until("the endpoint is as it was", lambda s: settled(s) and in_role(s, "Current").get("name") == before["name"], 300)
