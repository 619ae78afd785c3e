"""Options of the crash tests, and the tally that is their last line."""

import pytest

from tests.crash.killer import Tally

pytest_plugins = ["tests.integration.conftest"]
TALLY = pytest.StashKey[Tally]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crash tests")
    group.addoption("--kills", type=int, default=12, help="how many times the operator is killed, each time in the life of another job")
    group.addoption("--seed", type=int, default=1, help="of the moments")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_unconfigure(config: pytest.Config) -> None:
    print(config.stash[TALLY], flush=True)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[TALLY]
