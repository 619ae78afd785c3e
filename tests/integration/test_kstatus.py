"""`helm install --wait` understands a FineTuneJob: it waits while it runs, ends when it has succeeded, and fails when it has failed or is stuck."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hack import helm
from tests.integration.job import TRAINED, finetunejob, name_of, phase, prepared, reason, training
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator

Install = Callable[..., subprocess.Popen[str]]
QUICKLY = 15.0  # seconds


@pytest.fixture
def install(kubectl: Kubectl, here: Namespace, tmp_path: Path) -> Iterator[Install]:
    """Starts `helm install --wait` of a chart with one FineTuneJob."""
    environment = os.environ | {f"HELM_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG", "DATA")} | {"KUBECONFIG": str(kubectl.kubeconfig)}
    release = ("release", "--namespace", kubectl.namespace)
    started: list[subprocess.Popen[str]] = []

    def start(timeout: str = "120s", **spec: object) -> subprocess.Popen[str]:
        chart = tmp_path / "chart"
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "tuned", "version": "0.1.0"}))
        (chart / "templates/job.yaml").write_text(json.dumps(finetunejob(**spec)))
        command = [helm.binary(), "install", *release, str(chart), "--wait", "--timeout", timeout]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    subprocess.run([helm.binary(), "uninstall", *release, "--ignore-not-found", "--no-hooks"], env=environment, check=True, capture_output=True)


def waits(process: subprocess.Popen[str], seconds: float = 5) -> bool:
    time.sleep(seconds)
    return process.poll() is None


def ended(process: subprocess.Popen[str], seconds: float = QUICKLY) -> tuple[int, str]:
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def test_it_waits_until_the_job_has_succeeded(operator: Operator, here: Namespace, install: Install) -> None:
    process = install()
    prepare = here.pod("Prepare")
    assert waits(process), "while the data are checked"
    here.end(name_of(prepare), 0, json.dumps({"step": "prepare", "reason": "Completed", "data": {"trainRows": 1, "validationRows": 0}}))
    train = name_of(here.pod("Train"))
    here.run(train)
    assert waits(process), "while it trains"
    here.end(train, 0, TRAINED)
    code, said = ended(process)
    assert code == 0, said


def test_kubectl_wait_knows_a_job_that_has_succeeded_also_when_somebody_edits_it_afterwards(operator: Operator, here: Namespace) -> None:
    here.apply(finetunejob())
    here.end(training(here), 0, TRAINED)
    phase(here, "Succeeded")
    here.rest.merge("finetunejob", "support", {"spec": {"ttlSecondsAfterFinished": 86400}})
    here.kubectl("wait", "--for=condition=Succeeded", "--timeout=15s", "finetunejob/support")


def test_it_waits_from_the_first_moment_on_also_without_an_operator(process: Operator, here: Namespace, install: Install) -> None:
    if process.running:
        process.stop()
    assert waits(install()), "an object without any status is not done"


def test_it_fails_when_the_job_has_failed(operator: Operator, here: Namespace, install: Install) -> None:
    process = install()
    here.end(name_of(here.pod("Prepare")), 21, json.dumps({"step": "prepare", "reason": "DataInvalid", "message": "train.jsonl:7: empty answer"}))
    code, said = ended(process)
    assert code != 0
    assert "support" in said


def test_it_fails_when_the_job_cannot_go_on(operator: Operator, here: Namespace, install: Install) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}
    here.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "support-train-1"}, "spec": {"suspend": True, "template": {"spec": pod}}})
    process = install()
    prepared(here)
    reason(here, "NameConflict")
    code, _ = ended(process)
    here.kubectl("delete", "job", "support-train-1")
    assert code != 0


def test_a_job_that_is_suspended_as_it_says_is_at_its_goal(operator: Operator, here: Namespace, install: Install) -> None:
    code, said = ended(install(suspend=True), 30)
    assert code == 0, said
