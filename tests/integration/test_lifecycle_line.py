"""The line between the operator and the API server breaks: the operator comes back by itself."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.counting_proxy import CountingProxy
from tests.integration.job import TRAINED, finetunejob, name_of, phase, prepared
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, wait


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


def goes_on(here: Namespace, seconds: float) -> None:
    """What happened meanwhile is taken up within so many seconds, and the job gets to its end."""
    wait("the end of the pod is noticed", lambda: here.items("jobs", "finetune.dev/step=Train"), seconds)
    here.end(name_of(here.pod("Train")), 0, TRAINED)
    phase(here, "Succeeded")


def test_watches_that_break_are_opened_anew(operator: Operator, here: Namespace, proxy: CountingProxy) -> None:
    here.apply(finetunejob())
    here.pod("Prepare")
    proxy.cut()
    prepared(here)
    goes_on(here, 10)


def test_watches_that_have_gone_silent_are_noticed_within_a_minute_or_so(operator: Operator, here: Namespace, proxy: CountingProxy) -> None:
    here.apply(finetunejob())
    here.pod("Prepare")
    time.sleep(1)
    proxy.mute()
    prepared(here)
    goes_on(here, 80)


def test_an_api_server_that_is_away_for_a_while_is_waited_for(operator: Operator, here: Namespace, proxy: CountingProxy) -> None:
    here.apply(finetunejob())
    here.pod("Prepare")
    proxy.down = True
    proxy.cut()
    prepared(here)
    time.sleep(20)
    proxy.down = False
    goes_on(here, 40)
