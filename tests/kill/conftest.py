"""Options of the kill tests, and the tally that is their last line."""

import pytest

from tests.kill.rig import Tally

pytest_plugins = ["tests.runtime.conftest"]
TALLY = pytest.StashKey[Tally]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kill tests")
    group.addoption("--kills", type=int, default=4, help="how many pods are killed, half of them by SIGTERM")
    group.addoption("--seed", type=int, default=1, help="of the moments")
    group.addoption("--only", type=int, default=None, help="number of the only kill to carry out, as a failure names it")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_unconfigure(config: pytest.Config) -> None:
    print(config.stash[TALLY], flush=True)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[TALLY]
