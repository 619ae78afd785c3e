"""What goes wrong in a schedule, and how often: drawn once from its seed, so that some schedules are calm and some stormy."""

from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

NEVER = 1 << 60


class Fate(Enum):
    """What happens to one request of the operator."""

    FINE = auto()
    REFUSED = auto()  # an error, and nothing was done
    UNANSWERED = auto()  # an error, but it was done
    CRASH_BEFORE = auto()  # the operator ends before the request
    CRASH_AFTER = auto()  # and here after it took effect, before the answer


@dataclass(slots=True)
class Weather:
    """Probabilities and delays of one schedule. Seconds where not said otherwise."""

    storm: float = 0.0  # 0 calm, 1 stormy
    crash: float = 0.0  # of a request
    error: float = 0.0  # of a request
    queue: float = 0.05  # longest wait of a key for a worker: an operator with many jobs is busy
    latency: float = 0.0  # longest of a request; 0: a round of the operator is one moment
    lags: dict[str, float] = field(default_factory=dict)  # longest of a watch, by kind
    stall: float = 0.0  # of an event: comes a minute late
    lost_watch: float = 0.0  # of a disturbance
    downtime: float = 5.0  # longest
    long_downtime: float = 0.0  # of a crash: hours
    skew: float = 0.0  # largest error of the operator's clock
    report_loss: float = 0.1  # of a progress report
    pod_failure: float = 0.0  # of a pod
    disturbances: int = 0  # things that happen to the cluster
    edits: int = 0  # things that users do
    window: float = 400.0  # in which both happen
    second_job: bool = False
    inference: float = 0.2  # share of jobs with an endpoint
    jobs: int = 1  # FineTuneJobs at the beginning
    endpoints: bool = False  # people work on an endpoint too, and versions are not all good
    bad_versions: float = 0.0  # share of adapters that cannot be served well
    canary: float = 0.0  # share of strategies with shares of the traffic
    late_gateway: float = 0.0  # chance that the Gateway API is installed in the middle of it all
    merged: bool = False  # endpoints are made with quantization Merged
    live: bool = False  # endpoints are made with live adapters
    gates: float = 0.0  # share of endpoints, jobs and candidates with a gate
    names: float = 0.0  # share of proposals under a name beside the endpoint's own

    def calm_down(self) -> None:
        """The end of all faults."""
        self.storm = self.crash = self.error = self.stall = self.lost_watch = self.long_downtime = self.pod_failure = 0.0
        self.latency, self.report_loss = min(self.latency, 0.05), 0.0
        self.lags = {kind: min(lag, 0.2) for kind, lag in self.lags.items()}


def weather(random: Random, kinds: tuple[str, ...]) -> Weather:
    """Weather of a schedule: each kind of fault is absent in many schedules, so that it is seen alone as well as together."""
    storm = random.random() if random.random() < 0.9 else 0.0

    def some(share: float, most: float) -> float:
        return most * storm * random.random() if storm and random.random() < share else 0.0

    slow = storm and random.random() < 0.4
    return Weather(
        storm=storm,
        crash=some(0.5, 0.15),
        error=some(0.5, 0.3),
        queue=random.choice((0.05, 1.0, 3.0)),
        latency=some(0.3, 3.0),
        lags={kind: random.choice((0.1, 0.5, 5.0, 30.0)) if slow else 0.1 for kind in kinds},
        stall=some(0.2, 0.05),
        lost_watch=some(0.3, 1.0),
        downtime=random.choice((1.0, 10.0, 60.0)),
        long_downtime=some(0.2, 0.5),
        skew=random.choice((0.0, 0.0, 0.0, 1.0, 5.0, 30.0)) if storm else 0.0,
        report_loss=random.choice((0.0, 0.1, 0.9)),
        pod_failure=some(0.6, 0.6),
        disturbances=round(some(0.7, 14.0)),
        edits=round(some(0.7, 14.0)),
        window=random.choice((120.0, 400.0, 1500.0)),
        second_job=random.random() < 0.15,
    )


def endpoint_weather(random: Random, kinds: tuple[str, ...]) -> Weather:
    """Weather of a schedule that is about an endpoint. People do more, jobs fail less: what matters begins when they are trained."""
    found = weather(random, kinds)
    found.endpoints, found.inference = True, 1.0
    found.jobs = random.choice((0, 0, 1, 2))
    found.bad_versions = random.choice((0.0, 0.3, 0.6))
    found.gates = random.choice((0.0, 0.4, 0.8))
    found.names = random.choice((0.0, 0.3, 0.6))
    found.pod_failure = random.choice((0.0, 0.1, 0.5))
    found.canary, found.late_gateway = random.choice((0.0, 0.4, 0.8)), 0.2
    found.edits, found.window = random.choice((2, 5, 10, 20)), random.choice((400.0, 1500.0, 1500.0))
    return found


class Requests:
    """Fates of the operator's requests. Draws how many are fine before the next one that is not: cheap while all is well."""

    def __init__(self, random: Random, conditions: Weather) -> None:
        self._random, self._weather = random, conditions
        self._fine = 0
        self.again()

    def again(self) -> None:
        """Draw anew, after the weather has changed."""
        chance = self._weather.crash + self._weather.error
        self._fine = int(self._random.expovariate(chance)) if chance else NEVER

    def next(self) -> Fate:
        """Fate of the next request."""
        if self._fine > 0:
            self._fine -= 1
            return Fate.FINE
        self.again()
        crash = self._random.random() * (self._weather.crash + self._weather.error) < self._weather.crash
        return self._random.choice((Fate.CRASH_BEFORE, Fate.CRASH_AFTER) if crash else (Fate.REFUSED, Fate.UNANSWERED))

    def status(self) -> int:
        """HTTP status of an error; 0: no answer within the time limit."""
        return self._random.choice((0, 409, 429, 500, 503))
