"""What a job costs the API server: the operator's requests, counted on their way."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.counting_proxy import CountingProxy, Request
from tests.integration.history import History
from tests.integration.job import PREPARED, TRAINED, finetunejob, name_of, phase, running
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, wait

QUIET = 20.0  # seconds without anything to do


@pytest.fixture(scope="module")
def proxy(operator_kubeconfig: Path) -> Iterator[CountingProxy]:
    found = CountingProxy(operator_kubeconfig)
    yield found
    found.close()


@pytest.fixture(scope="module")
def process(proxy: CountingProxy, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    found = Operator(proxy.kubeconfig(folder / "kubeconfig"), kubectl.namespace, folder / "log")
    yield found
    code = found.stop()
    print(found.log())
    assert code == 0


def told(requests: list[Request]) -> str:
    return "".join(f"\n  {number:2} {request}" for number, request in enumerate(requests, 1))


def quiet(proxy: CountingProxy) -> list[Request]:
    """Requests of so many seconds, of which a watch that is opened anew is none to speak of."""
    time.sleep(2)
    before = len(proxy.requests)
    time.sleep(QUIET)
    return [r for r in proxy.requests[before:] if not r.watch]


def test_a_job_takes_few_writes_and_none_while_nothing_happens(operator: Operator, here: Namespace, proxy: CountingProxy, history: History) -> None:
    begin = len(proxy.requests)
    here.apply(finetunejob(inference={}))
    prepare = name_of(here.pod("Prepare"))
    here.run(prepare)
    time.sleep(2)
    here.end(prepare, 0, PREPARED)
    train = running(here)
    assert told(quiet(proxy)) == "", "a job that trains"
    here.end(train, 0, TRAINED)
    serving = name_of(wait("a serving pod", lambda: here.items("pods", "finetune.dev/endpoint=support"))[0])
    time.sleep(2)
    here.run(serving)
    phase(here, "Succeeded")
    assert told(quiet(proxy)) == "", "a job that has finished and its endpoint"
    done = proxy.requests[begin:]
    writes = [r for r in done if r.writes]
    events = [r for r in writes if r.path.endswith("/events")]
    jobs = [r for r in writes if r not in events and _of_the_job(r)]
    endpoint = [r for r in writes if r not in events and r not in jobs]
    reads = [r for r in done if not r.writes and not r.watch]
    print(f"writes for the job: {len(jobs)}, for its endpoint: {len(endpoint)}, events: {len(events)}; reads: {len(reads)}")
    print("job:" + told(jobs) + "\nendpoint:" + told(endpoint) + "\nreads:" + told(reads))
    print("statuses:" + "".join(f"\n  {line}" for line in statuses(history)))
    assert len(jobs) <= 12, told(jobs)


def statuses(history: History) -> list[str]:
    """What each status write of the job said."""
    found = [e.body["status"] for e in history.events() if e.kind == "finetunejobs" and "phase" in (e.body.get("status") or {})]
    return [f"{s['phase']} {s['reason']}: {s['message'][:90]}" for s in found]


def _of_the_job(request: Request) -> bool:
    """Whether a write is for the FineTuneJob; the rest is the ModelEndpoint's own life, which begins with its creation."""
    path = request.path
    return "/finetunejobs/" in path or "/jobs" in path or "/configmaps/support-config" in path or path.endswith("/modelendpoints")
