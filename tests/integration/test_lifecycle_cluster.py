"""What happens around a job: its namespace is deleted, the CRDs are newer or older than the operator."""

import copy
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.job import TRAINED, finetunejob, name_of, phase, prepared
from tests.integration.kubectl import Kubectl, KubectlError
from tests.integration.operator_process import Namespace, Operator, wait
from tests.integration.rest import Rest

CRD = "finetunejobs.finetune.dev"
WARNING = re.compile(r"\[(WARNING |ERROR   |CRITICAL)\]")


def test_a_namespace_that_is_deleted_takes_its_jobs_with_it_and_the_operator_has_nothing_to_complain_of(
    cluster: Kubectl, kubeconfig: Path, tmp_path: Path
) -> None:
    names = [f"test-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        cluster("create", "namespace", name)
    dies, lives = (Namespace(kubectl, Rest(kubectl)) for kubectl in map(cluster.within, names))
    operator = Operator(kubeconfig, ",".join(names), tmp_path / "log")
    operator.start()
    for namespace in (dies, lives):
        namespace.apply(*(finetunejob(name) for name in ("one", "two", "three")))
        for name in ("one", "two"):
            prepared(namespace, name)
        for name in ("one", "two"):
            namespace.run(name_of(namespace.pod("Train", job=name)))
    begin = len(operator.log())
    cluster("delete", "namespace", names[0], "--wait=false")

    def gone() -> bool:
        if not cluster("get", "namespace", names[0], "--ignore-not-found"):
            return True
        dies.reap()
        with suppress(KubectlError):  # its controller waits for half of the pods' grace, five minutes, unless the namespace changes
            cluster("annotate", "namespace", names[0], f"example.org/looked={time.monotonic()}", "--overwrite")
        return False

    wait("the namespace is gone", gone, 180)
    time.sleep(5)
    complaints = [line for line in operator.log()[begin:].splitlines() if WARNING.search(line)]
    print("\n".join(complaints))
    assert "Traceback" not in operator.log()[begin:]
    assert len(complaints) <= 6, "one for each job and round in which the namespace was already going, and none for ever"
    lives.end(name_of(lives.pod("Train", job="one")), 0, TRAINED)
    phase(lives, "Succeeded", "one")
    assert operator.stop() == 0
    cluster("delete", "namespace", names[1], "--wait=false")
    for namespace in (dies, lives):
        namespace.rest.close()


@pytest.fixture
def crd(cluster: Kubectl) -> Iterator[dict[str, Any]]:
    """The CustomResourceDefinition of FineTuneJobs as it is installed; whatever a test does to it is undone."""
    found = cluster.json("get", "crd", CRD)
    yield {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": {"name": CRD}, "spec": copy.deepcopy(found["spec"])}
    found["metadata"] = {"name": CRD}
    found.pop("status")
    cluster("replace", "-f", "-", stdin=found | {"metadata": cluster.json("get", "crd", CRD)["metadata"]})


def schema(crd: dict[str, Any]) -> dict[str, Any]:
    return dict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])


def install(cluster: Kubectl, crd: dict[str, Any]) -> None:
    cluster("replace", "-f", "-", stdin=crd | {"metadata": cluster.json("get", "crd", CRD)["metadata"]})


def serves(rest: Rest, body: dict[str, Any], field: str, expected: bool) -> None:
    """The API server takes a new schema up after a moment."""

    def probe() -> bool:
        answer = rest("POST", rest.path("finetunejobs"), body | {"metadata": {"name": "probe"}}, query={"dryRun": "All"})
        return (field in answer["spec"]) is expected

    wait("the new schema is served", probe)


def test_fields_of_a_newer_crd_are_kept_and_do_no_harm(operator: Operator, here: Namespace, cluster: Kubectl, crd: dict[str, Any]) -> None:
    schema(crd)["spec"]["properties"]["future"] = {"type": "object", "properties": {"field": {"type": "string"}}}
    schema(crd)["spec"]["properties"]["training"]["properties"]["future"] = {"type": "string"}
    install(cluster, crd)
    body = finetunejob(future={"field": "x"}, training={"future": "y"})
    serves(here.rest, body, "future", True)
    here.apply(body)
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")
    spec = here.get("finetunejob", "support")["spec"]
    assert (spec["future"], spec["training"]["future"]) == ({"field": "x"}, "y")


def test_an_older_crd_lacks_fields_and_the_operator_works_on(operator: Operator, here: Namespace, cluster: Kubectl, crd: dict[str, Any]) -> None:
    del schema(crd)["spec"]["properties"]["schedulingTimeoutSeconds"]
    for field in ("idleInterruptions", "activeSince", "activeSeconds", "estimate"):
        del schema(crd)["status"]["properties"][field]
    install(cluster, crd)
    serves(here.rest, finetunejob(schedulingTimeoutSeconds=5), "schedulingTimeoutSeconds", False)
    here.apply(finetunejob())
    prepared(here)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")
