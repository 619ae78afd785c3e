"""Progress reports against a real API server: its TokenReviews, tokens that it issued, and our own TLS."""

import http.client
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.authenticate import REFUSALS
from finetune_operator.names import config_map
from finetune_operator.status_server import MAX_BODY, REPORTS
from finetune_runtime.contract.config import Reporting
from finetune_runtime.train.progress import Phase, Reporter
from tests.integration.job import finetunejob, phase, prepared
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, wait
from tests.integration.rest import Rest

AUDIENCE = "finetune-operator"


def body(**metrics: object) -> bytes:
    found = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    return json.dumps({"trainerStatus": {"lastUpdatedTime": "2027-01-15T08:00:00Z", "metrics": found}}).encode()


REPORT = body(step=12, totalSteps=40, loss=1.08, checkpointStep=10, resumedFrom=0)


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    retry_after: str


@dataclass
class Edge:
    """The status server of a running operator, and FineTuneJob `support` whose training pod runs."""

    operator: Operator
    here: Namespace
    pod: dict[str, Any]

    @property
    def ca(self) -> str:
        name = config_map("support", self.here.get("finetunejob", "support")["metadata"]["uid"])
        return str(self.here.get("configmap", name)["data"]["status-ca.crt"])

    def path(self, job: str = "support") -> str:
        return f"/v1alpha1/namespaces/{self.here.kubectl.namespace}/finetunejobs/{job}/status"

    def ask(self, token: str, data: bytes = REPORT, path: str = "", method: str = "POST", source: str = "127.0.0.1") -> Answer:
        """What a client with the address `source` is answered."""
        context = ssl.create_default_context(cadata=self.ca)
        connection = http.client.HTTPSConnection("localhost", self.operator.status_port, context=context, timeout=15, source_address=(source, 0))
        try:
            connection.request(method, path or self.path(), data, {"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), answer.headers.get("Retry-After", ""))
        finally:
            connection.close()

    def token(self, pod: dict[str, Any] | None = None, audience: str = AUDIENCE) -> str:
        meta = (pod or self.pod)["metadata"]
        bound = ("--bound-object-kind", "Pod", "--bound-object-name", meta["name"], "--bound-object-uid", meta["uid"])
        return self.here.kubectl.within(meta["namespace"])("create", "token", "default", "--audience", audience, *bound).strip()

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.operator.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def operator(operator_kubeconfig: Path, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    found = Operator(operator_kubeconfig, kubectl.namespace, tmp_path_factory.mktemp("operator") / "log")
    found.start()
    yield found
    code = found.stop()
    print(found.log())
    assert code == 0


@pytest.fixture
def edge(operator: Operator, kubectl: Kubectl, rest: Rest) -> Iterator[Edge]:
    here = Namespace(kubectl, rest)
    here.apply(finetunejob())
    prepared(here)
    pod = here.pod("Train")
    here.run(pod["metadata"]["name"])
    phase(here, "Training")
    yield Edge(operator, here, pod)
    kubectl("delete", "finetunejobs", "--all", "--wait=true", "--timeout=30s")
    wait("an empty namespace", lambda: not here.items("jobs,pods") or reap(kubectl), 60)


def reap(kubectl: Kubectl) -> bool:
    """There is no kubelet that would confirm the end of deleted pods."""
    kubectl("delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
    return False


def bare_pod(kubectl: Kubectl, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "x"}], "schedulerName": "nobody"}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}
    return dict(kubectl.json("create", "-f", "-", stdin=made))


def test_whoever_is_no_pod_of_the_job_is_refused(edge: Edge, cluster: Kubectl) -> None:
    here, kubectl = edge.here, edge.here.kubectl
    here.apply(finetunejob("sales"))
    sales = wait("a pod of another job", lambda: here.items("pods", "finetune.dev/job=sales"))[0]
    other = f"{kubectl.namespace}-other"
    cluster("create", "namespace", other)
    try:
        wait("the account of the other namespace", lambda: cluster.within(other)("get", "serviceaccount", "default", "--ignore-not-found"))
        tokens = {
            "no token": ("", 401),
            "a token that nobody issued": ("nonsense", 401),
            "a token of another issuer": ("e30.e30.c2ln", 401),
            "a token for another audience": (edge.token(audience="https://kubernetes.default.svc"), 401),
            "a token that is bound to no pod": (kubectl("create", "token", "default", "--audience", AUDIENCE).strip(), 403),
            "a pod of no job": (edge.token(bare_pod(kubectl, "bystander")), 403),
            "a pod with the labels of a job that had this name": (edge.token(bare_pod(kubectl, "impostor", labels("support"))), 403),
            "a pod of another job": (edge.token(sales), 403),
            "a pod of another namespace": (edge.token(bare_pod(cluster.within(other), edge.pod["metadata"]["name"])), 403),
        }
        answers = {case: edge.ask(token, source="127.0.0.2") for case, (token, _) in tokens.items()}
        assert {case: answer.status for case, answer in answers.items()} == {case: status for case, (_, status) in tokens.items()}
        assert not [case for case, (token, _) in tokens.items() if token and token in answers[case].text]
        assert edge.ask(edge.token(), path=edge.path("sales")).status == 403
        assert edge.ask(edge.token(), path=edge.path("nobody")).status == 403
        assert "progress" not in here.status()
    finally:
        cluster("delete", "namespace", other, "--wait=false")


def labels(job: str, uid: str = "00000000-0000-0000-0000-000000000000") -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": job, "finetune.dev/job-uid": uid, "finetune.dev/step": "Train"}


def test_a_pod_that_is_gone_reports_no_more_not_even_as_its_namesake(edge: Edge) -> None:
    kubectl = edge.here.kubectl
    ours = labels("support", edge.here.get("finetunejob", "support")["metadata"]["uid"])
    earlier = bare_pod(kubectl, "twin", ours)
    token, fresh = edge.token(earlier), edge.token(earlier)
    wait("the pod is known", lambda: edge.ask(token).status == 200)
    kubectl("delete", "pod", "twin", "--force", "--grace-period=0", "--wait=true")
    later = bare_pod(kubectl, "twin", ours)
    assert later["metadata"]["uid"] != earlier["metadata"]["uid"]
    wait("its namesake is known", lambda: edge.ask(edge.token(later)).status == 200)
    answer = edge.ask(token)
    assert (answer.status, earlier["metadata"]["uid"] in answer.text) == (403, True)
    assert edge.ask(fresh, source="127.0.0.3").status == 401  # the API server itself knows that its pod is gone


def test_what_is_no_report_is_refused(edge: Edge) -> None:
    token = edge.token()
    assert edge.ask(token, b"x" * (MAX_BODY + 1)) == Answer(413, "a progress report may have at most 65536 bytes", "")
    assert edge.ask(token, b'{"secret": ').text.startswith("not a progress report: Invalid JSON")
    assert edge.ask(token, b"[]").status == 422
    assert edge.ask(token, path="/v1alpha1/status").status == 404
    assert edge.ask(token, method="GET").status == 405


def test_a_client_that_does_not_know_the_certificate_does_not_trust_it_and_plain_http_is_not_answered(edge: Edge) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection("localhost", edge.operator.status_port, context=ssl.create_default_context(), timeout=5).request("POST", edge.path())
    plain = http.client.HTTPConnection("localhost", edge.operator.status_port, timeout=5)
    plain.request("POST", edge.path(), REPORT)
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()


def test_who_comes_too_often_has_to_wait(edge: Edge) -> None:
    token = edge.token()
    answers = [edge.ask(token) for _ in range(REPORTS + 1)]
    assert [answer.status for answer in answers] == [200] * REPORTS + [429]
    assert 1 <= int(answers[-1].retry_after) <= 5


def test_an_address_that_guesses_tokens_is_shut_out_and_no_other_is(edge: Edge) -> None:
    answers = [edge.ask(f"guess-{number}", source="127.0.0.9") for number in range(REFUSALS + 5)]
    assert {answer.status for answer in answers[:REFUSALS]} == {401}
    assert answers[-1].status == 429
    assert int(answers[-1].retry_after) >= 1
    assert edge.ask(edge.token(), source="127.0.0.9").status == 429  # a token that was not seen yet would have to be reviewed
    assert edge.ask(edge.token(), source="127.0.0.10").status == 200


def test_what_a_pod_reports_is_shown_within_15_seconds(edge: Edge) -> None:
    assert edge.ask(edge.token()).status == 200
    status = wait("the progress", lambda: s if (s := edge.here.status()).get("progress") else {}, 15)
    shown = status["progress"]
    assert (status["display"]["step"], shown["loss"], shown["percent"], shown["checkpointStep"], shown["resumedFrom"]) == ("12/40", "1.08", 30, 10, 0)
    assert "stale" not in shown


def test_the_supervisors_own_reports_are_understood(edge: Edge, tmp_path: Path) -> None:
    ca, token = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_text(edge.ca)
    token.write_text(edge.token())
    reporting = Reporting(url=f"https://localhost:{edge.operator.status_port}{edge.path()}")
    reporter = Reporter(reporting, str(ca), str(token))
    reporter.update(phase=Phase.TRAINING, step=7, total_steps=20, epoch=0.35, loss=1.5, checkpoint_step=5, resumed_from=5, gpu_memory_gib=7.25)
    reporter.close()
    shown = wait("the progress", lambda: s if (s := edge.here.status().get("progress", {})).get("step") == 7 else {}, 15)
    assert {key: shown[key] for key in ("totalSteps", "epoch", "loss", "checkpointStep", "resumedFrom", "gpuMemory")} == {
        "totalSteps": 20, "epoch": "0.35", "loss": "1.5", "checkpointStep": 5, "resumedFrom": 5, "gpuMemory": "7.25",
    }  # fmt: skip


def test_progress_costs_at_most_one_write_in_ten_seconds(edge: Edge) -> None:
    seconds, token = 25, edge.token()
    seen: list[tuple[float, str]] = []
    watch = threading.Thread(target=follow, args=(edge.here.kubectl, seconds + 5, seen))
    watch.start()
    wait("the watch has begun", lambda: seen)
    answers = set()
    for step in range(1, seconds + 1):
        answers.add(edge.ask(token, body(step=step, totalSteps=400, loss=400 - step)).status)
        time.sleep(1)
    watch.join()
    assert answers == {200, 429}
    changes = [when for when, _ in seen[1:]]
    assert 2 <= len(changes) <= (seconds + 5) // 10
    assert all(later - earlier >= 9 for earlier, later in pairwise(changes))
    progress = edge.here.status()["progress"]
    assert progress["step"] > REPORTS
    assert 0 < progress["etaSeconds"] < 2 * 400


def follow(kubectl: Kubectl, seconds: int, seen: list[tuple[float, str]]) -> None:
    """When a job's resourceVersion changed, for so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        version = kubectl("get", "finetunejob", "support", "-o", "jsonpath={.metadata.resourceVersion}")
        if not seen or seen[-1][1] != version:
            seen.append((time.monotonic(), version))
        time.sleep(0.2)


def test_jobs_have_metrics_as_long_as_they_are_there(edge: Edge) -> None:
    mine = f'name="support",namespace="{edge.here.kubectl.namespace}"'
    assert edge.ask(edge.token()).status == 200
    found = edge.metrics()
    for line in (f'finetune_job_phase{{{mine},phase="Training"}} 1.0', f"finetune_job_step{{{mine}}} 12.0", f"finetune_job_checkpoint_step{{{mine}}} 10.0"):
        assert line in found
    assert "finetune_job_progress_age_seconds" in found
    edge.here.kubectl("delete", "finetunejob", "support", "--timeout=30s")
    wait("its metrics are gone", lambda: mine not in edge.metrics())
    assert 'finetune_reconciles_total{result="success"}' in found
    assert 'finetune_progress_reports_total{status="200"}' in found
    assert edge.operator.ready()
