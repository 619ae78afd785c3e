"""Quantization Merged as a story: the adapter is merged before a pod of the version starts, once, and what fails is named."""

import json
from typing import Any

import pytest

from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.build.evaluation import evaluate_config
from finetune_operator.build.merge import merge_config, merge_job
from finetune_operator.plan.adapters import served
from finetune_runtime.contract.config import MergeConfig

from .makers import SETTINGS, endpoint_state, names, owner, result
from .story import Story, candidate, evaluation, evaluation_pod, serving_pod

MERGED = {"uri": "s3://models/ft/team/support/merged/0123", "manifestSha256": "d" * 64}
DONE = result("merge", merged=MERGED)


class Merging(Story):
    def __init__(self, **spec: Any) -> None:
        super().__init__(**{"quantization": "Merged", **spec})

    def merging(self, letter: str = "b") -> str:
        """A candidate, and the name of the Job that merges it."""
        self.spec["candidate"] = candidate(letter)
        self.look()
        return next(iter(self.jobs))

    def end(self, job: str, code: int, message: str) -> None:
        over = {"complete": True, "finished_at": "2027-01-15T08:00:00Z"} if code == 0 else {"failed": True, "failure": "BackoffLimitExceeded"}
        self.jobs[job] = evaluation(job, step="Merge", **over)
        self.pods = [evaluation_pod(job, code, message, step="Merge")] if message else []

    def merged(self, letter: str = "b") -> str:
        """A version whose adapter is merged."""
        self.end(self.merging(letter), 0, DONE)
        self.look()
        self.pods = []
        self.look()
        return self.name(letter)

    def config(self, version: str) -> dict[str, Any]:
        bodies = [b for b in self.plan.apply if b["kind"] == "ConfigMap" and b["metadata"]["name"] == version]
        return dict(json.loads(bodies[0]["data"]["config.json"]))


def test_the_adapter_is_merged_before_anything_of_the_version_is_made() -> None:
    story = Merging()
    job = story.merging()
    assert names(story.plan.create) == [f"Job/{job}"]
    assert (story.plan.apply, story.roles(), story.progress()) == ((), {"b": "Candidate"}, ("True", "Merging"))
    assert story.look().create == ()


def test_what_was_merged_is_on_record_before_the_pods_start() -> None:
    story = Merging()
    job = story.merging()
    story.end(job, 0, DONE)
    plan = story.look()
    assert (plan.apply, story.version("b")["merged"], [r.name for r in plan.delete]) == ((), MERGED, [job])
    assert (plan.requeue_after or 0) > 0
    story.pods = []
    story.look()
    assert story.replicas == {story.name("b"): 1}
    assert story.config(story.name("b"))["merged"] == MERGED
    story.up("b")
    story.look()
    assert (story.traffic(), story.version("b")["merged"]) == (story.name("b"), MERGED)
    assert story.look(1000).create == ()


def test_the_old_version_answers_until_the_new_one_is_merged_also_where_it_has_to_make_room() -> None:
    story = Merging(strategy={"type": "Recreate"})
    old = story.merged("a")
    story.up("a")
    story.look()
    assert story.traffic() == old
    story.pods = [serving_pod(old, running=True)]
    story.merging("b")
    assert (story.replicas, story.progress()) == ({old: 1}, ("True", "Merging"))
    story.pods = [*story.pods, evaluation_pod(next(iter(story.jobs)), 0, DONE, step="Merge")]
    story.look()
    story.look()
    assert (story.replicas, story.progress()) == ({old: 1, story.name("b"): 0}, ("True", "Recreating"))
    story.look()
    assert (story.replicas, story.progress()) == ({old: 0, story.name("b"): 0}, ("True", "Recreating"))


def test_time_to_answer_counts_from_the_end_of_the_merge() -> None:
    story = Merging(strategy={"timeoutSeconds": 600})
    job = story.merging()
    story.look(5000)
    story.end(job, 0, DONE)
    story.look()
    story.pods = []
    story.look(500)
    assert story.roles() == {"b": "Candidate"}
    story.look(200)
    assert story.version("b")["reason"] == "NotReadyInTime"


FAILURES = [
    ("an adapter that cannot be merged", 20, result("merge", "InvalidConfig", "The adapter has DoRA (use_dora), which cannot be merged"), "DoRA"),
    ("crashes until the Job gives up", 137, "", "could not be merged into the base model: BackoffLimitExceeded"),
    ("storage that stays down", 40, result("merge", "StorageUnavailable", "the storage does not answer"), "does not answer"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message", "words"), [c[1:] for c in FAILURES], ids=[c[0] for c in FAILURES])
def test_a_merge_that_fails_ends_the_version_with_the_cause_and_the_old_one_never_notices(code: int, message: str, words: str) -> None:
    story = Merging()
    old = story.merged("a")
    story.up("a")
    story.look()
    job = story.merging("b")
    story.end(job, code, message)
    plan = story.look()
    assert (story.roles(), story.progress(), story.traffic()) == ({"a": "Current", "b": "Rejected"}, ("False", "MergeFailed"), old)
    assert words in story.version("b")["message"]
    assert job in [r.name for r in plan.delete]
    story.pods = []
    assert story.look(1000).create == ()  # not tried again until something else is asked for
    story.spec["version"] = "b"
    assert names(story.look().create) == [f"Job/{job}"]


def test_a_lost_result_is_asked_for_again() -> None:
    story = Merging()
    job = story.merging()
    story.end(job, 0, "")
    assert story.look().delete == ()
    assert [r.name for r in story.look(20).delete] == [job]
    assert names(story.look().create) == [f"Job/{job}"]


def test_an_exit_without_a_merged_model_does_not_count() -> None:
    story = Merging()
    story.end(story.merging(), 0, result("merge"))
    story.look()
    assert ("merged" in story.version("b"), story.replicas) == (False, {})


def test_the_merge_of_a_version_that_was_overtaken_goes_and_the_next_one_waits_for_its_pod() -> None:
    story = Merging()
    job = story.merging("a")
    story.pods = [serving_pod(job, step="Merge", running=True)]
    story.spec["candidate"] = candidate("b")
    assert [r.name for r in story.look().delete if r.kind == "Job"] == [job]
    assert (story.look().create, story.progress()) == ((), ("True", "Merging"))
    story.pods = []
    assert len(story.look().create) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"unschedulable": "0/3 nodes"}, "Unschedulable"), ({"waiting_reason": "ImagePullBackOff"}, "ImagePullFailed"), ({"running": True}, "Merging")],
)
def test_what_holds_the_merge_up_is_told(fields: dict[str, Any], reason: str) -> None:
    story = Merging()
    job = story.merging()
    story.pods = [serving_pod(job, step="Merge", phase="Pending", **fields)]
    story.look()
    assert story.progress() == ("True", reason)


def test_a_version_that_comes_back_without_pods_is_looked_for_in_storage_again() -> None:
    story = Merging(strategy={"watchSeconds": 0})
    for letter in ("a", "b"):
        story.merged(letter)
        story.up(letter)
        story.look()
        story.look(100)
    assert story.roles() == {"b": "Current", "a": "Retired"}
    story.spec["version"] = "a"
    assert len(story.look().create) == 1
    assert "merged" not in story.version("a")


def test_a_version_with_pods_of_an_older_spec_is_taken_as_it_is() -> None:
    story = Merging(keepPrevious=1, quantization="AsTrained", strategy={"watchSeconds": 0})
    old = story.serving("a")
    story.spec["quantization"] = "Merged"
    story.spec["candidate"] = candidate("b")
    story.merged("b")
    story.up("b")
    story.look()
    story.spec["version"] = "a"
    plan = story.look()
    assert (story.traffic(), plan.create) == (old, ())


def test_the_pod_needs_no_gpu_is_selected_by_nobody_and_carries_its_configuration() -> None:
    seen = endpoint_state(spec={"candidate": candidate("b"), "quantization": "Merged", "model": {"source": "pvc://base/qwen"}})
    assert seen.spec.candidate
    body = merge_job(owner("ModelEndpoint"), seen.spec, SETTINGS, "support-m1", seen.spec.candidate.adapter)
    pod = body["spec"]["template"]
    assert "finetune.dev/version" not in pod["metadata"]["labels"]
    assert "nvidia.com/gpu" not in json.dumps(pod)
    assert (pod["spec"]["restartPolicy"], pod["spec"]["containers"][0]["args"]) == ("Never", ["merge"])
    assert {"name": "source-0", "persistentVolumeClaim": {"claimName": "base", "readOnly": True}} in pod["spec"]["volumes"]
    item = next(v for v in pod["spec"]["volumes"] if v["name"] == "config")["downwardAPI"]["items"][0]
    assert item == {"path": "config.json", "fieldRef": {"fieldPath": "metadata.annotations['finetune.dev/config']"}}
    config = MergeConfig.model_validate_json(pod["metadata"]["annotations"]["finetune.dev/config"])
    assert config == merge_config(owner("ModelEndpoint"), seen.spec, seen.spec.candidate.adapter)
    assert config.uri == "s3://models/ft/team/support/merged"


@pytest.mark.parametrize(("quantization", "asked"), [("AsTrained", ["base"]), ("None", ["base", "drift"]), ("Merged", ["drift"])])
def test_a_merged_version_has_no_base_to_ask_and_other_quantisations_are_compared_with_the_training(quantization: str, asked: list[str]) -> None:
    seen = endpoint_state(spec={"candidate": candidate("b"), "quantization": quantization})
    assert seen.spec.candidate
    record = VersionStatus(name="support-new", role="Candidate", adapter=seen.spec.candidate.adapter)
    config = evaluate_config(owner("ModelEndpoint"), seen.spec, (), served(record)[""], record, None).dump()
    assert [field for field in ("base", "drift") if field in config] == asked
    if "drift" in asked:
        assert config["drift"] == {"adapter": candidate("b")["adapter"], "quantization": quantization, "engine": "vLLM"}
