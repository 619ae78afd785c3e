"""The gate as a story: no version gets traffic that has not passed, and no failure counts as passing."""

from typing import Any

import pytest

from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.build.evaluation import evaluate_config, evaluation_job
from finetune_operator.plan.adapters import served
from finetune_operator.plan.gate import loss_fault
from finetune_operator.plan.versions import gates
from finetune_runtime.contract.evaluation import Evaluation

from .makers import SETTINGS, endpoint_state, names, owner, result
from .story import Story, candidate, crashing, evaluation, evaluation_pod, serving_pod

GATE = {"prompts": [{"name": "room", "prompt": "What is the code of room 7?", "expect": {"contains": ["41"]}}]}
PASSED = result("evaluate", evaluation={"passed": True, "prompts": 1, "repeats": 3})
CLOSED = result("evaluate", "GateClosed", evaluation={"passed": False, "prompts": 1, "repeats": 3, "reasons": ["pass rate 0.00 is below minPassRate 0.80"]})


class Gated(Story):
    def asked(self, letter: str = "b") -> str:
        """A version that answers, and the name of the Job that asks it."""
        self.spec["candidate"] = candidate(letter)
        self.look()
        self.up(letter)
        self.look()
        return next(iter(self.jobs))

    def answer(self, job: str, code: int, message: str, **fields: Any) -> None:
        ended = {"complete": True, "finished_at": "2027-01-15T08:00:00Z"} if code == 0 else {"failed": True, "failure": "BackoffLimitExceeded"}
        self.jobs[job] = evaluation(job, **{**ended, **fields})
        self.pods = [evaluation_pod(job, code, message)] if message else []


def test_a_version_that_answers_is_asked_before_it_gets_the_traffic() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    assert (story.traffic(), story.roles(), story.progress()) == ("", {"b": "Candidate"}, ("True", "Evaluating"))
    assert names(story.plan.create) == [f"Job/{job}"]
    assert names(story.plan.apply)[-1] == f"ConfigMap/{story.name('b')}-gate"
    assert story.look().create == ()


def test_one_that_passes_gets_it_and_keeps_its_result() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.answer(job, 0, PASSED)
    plan = story.look()
    assert (story.traffic(), story.roles()) == (story.name("b"), {"b": "Current"})
    assert story.version("b")["evaluation"]["passed"] is True
    assert [(r.kind, r.name) for r in plan.delete] == [("Job", job)]
    story.pods = []
    assert story.look(1000).create == ()


def test_what_was_compared_with_a_version_that_has_lost_the_traffic_does_not_count() -> None:
    story = Gated(strategy={"watchSeconds": 600})
    story.serving("a")
    story.serving("b")
    story.spec["gate"] = {**GATE, "notWorseThanCurrent": True}
    job = story.asked("c")
    story.pods = [crashing(story.name("b"), 1)]
    story.ready[story.name("b")] = 0
    story.look()
    assert story.traffic() == story.name("a")
    story.look()
    [again] = story.jobs
    assert again != job
    story.answer(again, 0, PASSED)
    story.look()
    assert story.traffic() == story.name("c")


@pytest.mark.parametrize("replicas", [0, 1], ids=["which is scaled to zero", "whose pod was evicted"])
def test_one_is_compared_with_the_version_that_has_the_traffic_when_that_answers(replicas: int) -> None:
    story = Gated()
    old = story.serving("a")
    story.spec |= {"replicas": replicas, "gate": {**GATE, "notWorseThanCurrent": True}}
    story.ready[old] = 0
    story.spec["candidate"] = candidate("b")
    story.look()
    story.up("b")
    story.look()
    assert (story.jobs, story.replicas[old], story.condition("Progressing")) == ({}, 1, ("True", "Starting"))
    assert f"as soon as that answers: version {old}: waiting for its pods" in story.message("Progressing")
    story.up("a")
    story.look()
    [job] = story.jobs
    story.answer(job, 0, PASSED)
    for _ in range(2):
        story.look()
    assert (story.traffic(), story.replicas[story.name("b")]) == (story.name("b"), replicas)
    story.pods = []
    story.look(10_000)
    assert story.roles() == {"b": "Current", "a": "Retired"}


def test_one_that_does_not_pass_goes_and_the_old_version_never_notices() -> None:
    story = Gated()
    old = story.serving("a")
    before = dict(story.replicas)
    story.spec["gate"] = GATE
    story.answer(story.asked("b"), 0, CLOSED)
    plan = story.look()
    assert (story.traffic(), story.roles(), story.progress()) == (old, {"a": "Current", "b": "Rejected"}, ("False", "GateClosed"))
    assert story.version("b")["evaluation"]["reasons"] == ["pass rate 0.00 is below minPassRate 0.80"]
    assert {r.name for r in plan.delete if r.kind == "Deployment"} == {story.name("b")}
    assert story.replicas == before


FAILURES = [
    ("crashes until the Job gives up", 1, "", "the evaluation could not be made: BackoffLimitExceeded"),
    ("prompts that cannot be read", 21, result("evaluate", "DataInvalid", "line 3 is not JSON"), "line 3 is not JSON"),
    ("storage that stays down", 40, result("evaluate", "StorageUnavailable", "the storage does not answer"), "does not answer"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message", "words"), [c[1:] for c in FAILURES], ids=[c[0] for c in FAILURES])
def test_an_evaluation_that_fails_never_passes_a_version(code: int, message: str, words: str) -> None:
    story = Gated(gate=GATE)
    story.answer(story.asked(), code, message)
    story.look()
    assert (story.traffic(), story.version("b")["role"], story.version("b")["reason"]) == ("", "Rejected", "EvaluationFailed")
    assert words in story.version("b")["message"]


def test_a_result_of_exit_0_without_an_evaluation_does_not_count() -> None:
    story = Gated(gate=GATE)
    story.answer(story.asked(), 0, result("evaluate"))
    story.look()
    assert (story.traffic(), story.roles()) == ("", {"b": "Candidate"})


def test_a_lost_result_is_asked_for_again() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.answer(job, 0, "")
    assert story.look().delete == ()
    assert [r.name for r in story.look(20).delete] == [job]
    assert names(story.look().create) == [f"Job/{job}"]


def test_a_changed_gate_is_another_evaluation() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.answer(job, 0, CLOSED)
    story.look()
    assert story.roles() == {"b": "Rejected"}
    story.spec["gate"] = {**GATE, "minPassRate": "0"}
    story.look()
    story.look()
    assert list(story.jobs) != [job]
    assert story.roles() == {"b": "Candidate"}


def test_an_evaluation_begins_when_the_pod_of_an_older_one_has_ended() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.pods = [serving_pod(job, step="Evaluate", running=True)]
    story.spec["gate"] = {**GATE, "repeats": 5}
    assert [r.name for r in story.look().delete] == [job]
    assert (story.look().create, story.progress()) == ((), ("True", "Evaluating"))
    story.pods = []
    assert len(story.look().create) == 1


def test_a_version_that_passed_is_not_asked_again_when_it_is_rolled_back_to() -> None:
    story = Gated(gate=GATE, keepPrevious=1, strategy={"watchSeconds": 0})
    for letter in ("a", "b"):
        story.answer(story.asked(letter), 0, PASSED)
        story.look()
        story.look(10)
    story.pods = []
    story.spec["version"] = "a"
    plan = story.look()
    assert (story.traffic(), plan.create) == (story.name("a"), ())


def test_an_endpoint_at_zero_starts_one_pod_for_the_gate_to_ask() -> None:
    story = Gated(gate=GATE, replicas=0)
    story.spec["candidate"] = candidate("b")
    story.look()
    assert story.replicas == {story.name("b"): 1}
    story.up("b")
    story.look()
    story.answer(next(iter(story.jobs)), 0, PASSED)
    story.look()
    assert (story.traffic(), story.replicas) == (story.name("b"), {story.name("b"): 0})


def test_pods_that_come_and_go_beside_one_that_answers_leave_the_evaluation_alone() -> None:
    story = Gated(gate=GATE, strategy={"timeoutSeconds": 600})
    job = story.asked()
    story.spec["replicas"] = 2
    assert (story.look(60).delete, list(story.jobs)) == ((), [job])
    story.up("b", 2)
    story.answer(job, 0, PASSED)
    story.spec["replicas"] = 3
    story.look(7200)
    assert (story.version("b")["evaluation"]["passed"], story.roles()) == (True, {"b": "Candidate"})
    story.pods = []
    story.look(500)
    assert (story.roles(), story.jobs) == ({"b": "Candidate"}, {})
    story.up("b", 3)
    assert (story.look().create, story.traffic()) == ((), story.name("b"))


def test_a_result_that_says_no_counts_whatever_the_pods_do_meanwhile() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.spec["replicas"] = 2
    story.answer(job, 0, CLOSED)
    story.look()
    assert (story.roles(), story.progress()) == ({"b": "Rejected"}, ("False", "GateClosed"))


def test_an_evaluation_that_cannot_start_is_waited_for_as_long_as_a_version_has_to_answer() -> None:
    story = Gated(strategy={"type": "Recreate", "timeoutSeconds": 600})
    old = story.serving("a")
    story.spec["gate"] = GATE
    story.spec["candidate"] = candidate("b")
    story.look()
    story.look(590)
    story.up("b")
    story.look()
    [job] = story.jobs
    missing = 'secret "judge" not found'
    story.pods = [serving_pod(job, step="Evaluate", waiting_reason="CreateContainerConfigError", waiting_message=missing)]
    story.look(590)
    assert (story.progress(), story.replicas[old]) == (("True", "SecretNotFound"), 0)
    story.look(20)
    assert (story.traffic(), story.roles(), story.replicas[old]) == (old, {"a": "Current", "b": "Rejected"}, 1)
    assert 'Secret "judge" does not exist' in story.version("b")["message"]


def test_an_evaluation_whose_pod_is_on_a_lost_node_is_named_with_the_cure() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.pods = [serving_pod(job, step="Evaluate", running=True, deleting=True)]
    story.look()
    told = next(c["message"] for c in story.status["conditions"] if c["type"] == "Progressing")
    assert "on node n1 to end. If that node is lost for good, delete its Node object" in told


def test_an_evaluation_whose_version_answers_nobody_any_more_is_made_anew() -> None:
    story = Gated(gate=GATE)
    job = story.asked()
    story.up("b", 0)
    assert [r.name for r in story.look().delete] == [job]


def test_a_loss_that_somebody_adds_is_looked_at() -> None:
    story = Story(gate={"evalLoss": {"max": "1.5"}}, candidate=candidate("a"))
    story.look()
    assert story.roles() == {"a": "Rejected"}
    story.spec["candidate"] = candidate("a", evalLoss="1.6")
    story.look()
    assert (story.roles(), "1.6 is above" in story.version("a")["message"]) == ({"a": "Rejected"}, True)
    story.spec["candidate"] = candidate("a", evalLoss="1.0")
    story.look()
    assert story.roles() == {"a": "Candidate"}


LOSSES = [
    ("no number at all", "1.5", "1,08", "the evaluation loss '1,08' of this version is not a number: write it like 1.08"),
    ("within the bound", "1.5", "1.2", ""),
    ("at the bound", "1.5", "1.5", ""),
    ("above", "1.5", "1.6", "evaluation loss 1.6 is above evalLoss.max 1.5"),
    ("not a number", "1.5", "nan", "evaluation loss nan is above evalLoss.max 1.5"),
    ("not known", "1.5", None, "no evaluation loss is known of this version, but the gate bounds it with evalLoss.max"),
    ("no bound", None, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("bound", "loss", "fault"), [c[1:] for c in LOSSES], ids=[c[0] for c in LOSSES])
def test_the_bound_on_the_evaluation_loss(bound: str | None, loss: str | None, fault: str) -> None:
    gate = Evaluation.model_validate({"evalLoss": {"max": bound}} if bound else {})
    assert loss_fault((gate,), loss) == fault


def test_a_loss_above_the_bound_starts_no_pod() -> None:
    story = Story(gate={"evalLoss": {"max": "1.5"}}, candidate=candidate("a", evalLoss="1.6"))
    plan = story.look()
    assert (plan.apply, story.replicas, story.version("a")["reason"]) == ((), {}, "GateClosed")


def test_the_gate_of_the_endpoint_and_that_of_the_job_must_both_be_passed() -> None:
    story = Gated(gate=GATE)
    story.spec["candidate"] = candidate("b", evaluation={"evalLoss": {"max": "1"}}, evalLoss="2")
    story.look()
    assert (story.version("b")["reason"], story.replicas) == ("GateClosed", {})


def test_the_pod_asks_through_the_versions_own_service_and_is_selected_by_none() -> None:
    gate = {
        **GATE,
        "promptsFrom": {"source": "pvc://prompts/clinic.jsonl"},
        "judge": {"endpoint": "http://judge/v1", "model": "m", "secretRef": {"name": "key"}},
    }
    seen = endpoint_state(spec={"gate": gate, "candidate": candidate("b"), "servedName": "desk"})
    assert seen.spec.candidate
    found = gates(seen.spec, seen.spec.candidate)
    body = evaluation_job(owner("ModelEndpoint"), seen.spec, SETTINGS, "support-e1", "support-new", found)
    pod = body["spec"]["template"]
    assert "finetune.dev/version" not in pod["metadata"]["labels"]
    assert (pod["spec"]["restartPolicy"], pod["spec"]["containers"][0]["args"]) == ("Never", ["evaluate"])
    assert {"name": "source-0", "persistentVolumeClaim": {"claimName": "prompts", "readOnly": True}} in pod["spec"]["volumes"]
    env = {e["name"]: e for e in pod["spec"]["containers"][0]["env"]}
    assert env["FINETUNE_JUDGE_KEY_0"]["valueFrom"]["secretKeyRef"] == {"name": "key", "key": "OPENAI_API_KEY"}


def test_the_pod_is_told_whom_to_ask_and_where_to_leave_the_results() -> None:
    seen = endpoint_state(spec={"gate": GATE, "candidate": candidate("b"), "servedName": "desk"})
    assert seen.spec.candidate
    record, old = (
        VersionStatus(name=f"support-{name}", role=role, adapter=seen.spec.candidate.adapter) for name, role in (("new", "Candidate"), ("old", "Current"))
    )
    config = evaluate_config(owner("ModelEndpoint"), seen.spec, gates(seen.spec, seen.spec.candidate), served(record)[""], record, old).dump()
    assert config["candidate"] == {"url": "http://support-new.team.svc.cluster.local/v1", "model": "desk"}
    assert config["base"] == {"url": "http://support-new.team.svc.cluster.local/v1", "model": "base"}
    assert config["current"] == {"url": "http://support-old.team.svc.cluster.local/v1", "model": "desk"}
    assert config["uri"] == "s3://models/ft/team/support/uid-1/evaluations/support-new"
    renamed = old.model_copy(update={"own_name": "front"})
    config = evaluate_config(owner("ModelEndpoint"), seen.spec, gates(seen.spec, seen.spec.candidate), served(record)[""], record, renamed).dump()
    assert (config["candidate"]["model"], config["current"]["model"]) == ("desk", "front"), "each by the name that its pods go by"
