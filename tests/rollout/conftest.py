"""Options of the rollout tests, and the tally that is their last line."""

from dataclasses import dataclass

import pytest

pytest_plugins = ["tests.e2e.conftest"]


@dataclass
class Tally:
    """What the last line of `make test-rollout` says."""

    requests: int = 0
    failed: int = 0
    rollouts: int = 0
    rollbacks: int = 0

    def __str__(self) -> str:
        return f"requests={self.requests} failed={self.failed} rollouts={self.rollouts} rollbacks={self.rollbacks}"


TALLY = pytest.StashKey[Tally]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("rollout tests").addoption("--replicas", type=int, default=2, help="serving pods of a version")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


def pytest_unconfigure(config: pytest.Config) -> None:
    print(config.stash[TALLY], flush=True)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[TALLY]
