"""Progress reports: the Kubeflow shape, over TLS, never in the way of the training."""

import http.server
import json
import logging
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from finetune_runtime.contract.config import Reporting
from finetune_runtime.train.progress import Phase, Progress, Reporter

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def test_a_full_report_has_the_shape_of_the_trainjob_protocol() -> None:
    progress = Progress(
        Phase.TRAINING, 132, 480, epoch=0.825, loss=1.08321234, eval_loss=1.25, learning_rate=2.5e-6, tokens_per_second=1234.5, gpu_memory_gib=7.5,
        checkpoint_step=120, resumed_from=0,
    )  # fmt: skip
    assert progress.report(NOON).dump() == {
        "trainerStatus": {
            "progressPercentage": 27,
            "metrics": [
                {"name": "step", "value": "132"},
                {"name": "totalSteps", "value": "480"},
                {"name": "epoch", "value": "0.825"},
                {"name": "loss", "value": "1.08321"},
                {"name": "evalLoss", "value": "1.25"},
                {"name": "learningRate", "value": "2.5e-06"},
                {"name": "tokensPerSecond", "value": "1234.5"},
                {"name": "gpuMemoryGiB", "value": "7.5"},
                {"name": "checkpointStep", "value": "120"},
                {"name": "resumedFrom", "value": "0"},
                {"name": "phase", "value": "Training"},
            ],
            "lastUpdatedTime": "2026-11-25T12:00:00Z",
        }
    }


def test_a_report_before_the_first_step_claims_nothing() -> None:
    status = Progress().report(NOON).dump()["trainerStatus"]
    assert "progressPercentage" not in status
    assert status["metrics"] == [{"name": "step", "value": "0"}, {"name": "totalSteps", "value": "0"}, {"name": "phase", "value": "Loading"}]


@dataclass
class Operator:
    """An HTTPS server that keeps what it is sent and answers with `status`."""

    url: str
    ca_path: str
    token_path: Path
    status: int = 200
    requests: list[tuple[float, dict[str, str], Any]] = field(default_factory=list)

    def reporter(self, interval: float = 0.05, url: str = "", ca_path: str = "", heartbeat: float = 60) -> Reporter:
        reporting = Reporting(url=url or self.url, interval_seconds=interval)
        return Reporter(reporting, ca_path=ca_path or self.ca_path, token_path=str(self.token_path), heartbeat_seconds=heartbeat)

    def has_step(self, step: str) -> bool:
        return step in self.steps()

    def steps(self) -> list[str]:
        return [body["trainerStatus"]["metrics"][0]["value"] for _, _, body in self.requests]


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    certificate, ca = self_signed(tmp_path, "server")
    (tmp_path / "token").write_text("first-token\n")
    found = Operator("", ca, tmp_path / "token")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append((time.monotonic(), dict(self.headers), body))
            self.send_response(found.status)
            if 300 <= found.status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keeps the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    found.url = f"https://127.0.0.1:{server.server_address[1]}/status/n/j"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def self_signed(directory: Path, name: str) -> tuple[str, str]:
    """Paths of a PEM file with key and certificate for 127.0.0.1, and of the certificate that verifies it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / f"{name}.pem").write_bytes(pem + certificate)
    (directory / f"{name}-ca.crt").write_bytes(certificate)
    return str(directory / f"{name}.pem"), str(directory / f"{name}-ca.crt")


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_newest_progress_arrives_with_the_token(operator: Operator) -> None:
    reporter = operator.reporter()
    reporter.update(step=1, total_steps=10, phase=Phase.TRAINING)
    eventually(lambda: "1" in operator.steps())
    reporter.update(step=2)
    reporter.close()
    assert operator.steps()[-1] == "2"
    assert operator.requests[-1][1]["Authorization"] == "Bearer first-token"
    assert operator.requests[-1][1]["Content-Type"] == "application/json"


def test_reports_keep_their_distance(operator: Operator) -> None:
    reporter = operator.reporter(interval=0.3)
    for step in range(100):
        reporter.update(step=step)
        time.sleep(0.01)
    reporter.close()
    times = [when for when, _, _ in operator.requests][:-1]  # the last one, at the end, does not wait
    assert len(times) >= 3
    assert all(later - earlier >= 0.29 for earlier, later in pairwise(times))


def test_nothing_is_sent_while_nothing_changes_and_no_heartbeat_is_due(operator: Operator) -> None:
    reporter = operator.reporter(interval=0.01)
    eventually(lambda: len(operator.requests) == 1)
    time.sleep(0.3)
    assert len(operator.requests) == 1
    reporter.close()


def test_a_pod_that_evaluates_for_long_is_heard_all_the_same(operator: Operator) -> None:
    reporter = operator.reporter(interval=0.01, heartbeat=0.2)
    reporter.update(step=7, phase=Phase.EVALUATING)
    eventually(lambda: operator.steps().count("7") >= 3)
    reporter.close()
    times = [when for when, _, body in operator.requests if body["trainerStatus"]["metrics"][0]["value"] == "7"][:-1]
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))


def test_updates_of_two_threads_do_not_undo_each_other() -> None:
    """The uploader tells of commits while the supervisor tells of steps."""
    reporter = Reporter(Reporting())
    undone: list[int] = []

    def count(name: str) -> None:
        for step in range(20000):
            reporter.update(**{name: step})
            if getattr(reporter._progress, name) != step:
                undone.append(step)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=count, args=[name]) for name in ("step", "checkpoint_step")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert undone == []


def test_token_and_certificate_may_rotate(operator: Operator, tmp_path: Path) -> None:
    _, other = self_signed(tmp_path, "other")
    ca = tmp_path / "rotating-ca.crt"
    ca.write_bytes(Path(other).read_bytes())
    reporter = operator.reporter(ca_path=str(ca))
    time.sleep(0.3)
    assert operator.requests == []  # not trusted
    ca.write_bytes(Path(operator.ca_path).read_bytes())
    operator.token_path.write_text("second-token")
    reporter.update(step=1)
    eventually(lambda: bool(operator.requests))
    assert operator.requests[-1][1]["Authorization"] == "Bearer second-token"
    reporter.close()


@pytest.mark.parametrize("status", [302, 307, 401, 403, 413, 429, 500, 503])
def test_a_refusing_operator_is_asked_once_a_report_and_complained_about_once(operator: Operator, status: int, caplog: pytest.LogCaptureFixture) -> None:
    operator.status = status
    with caplog.at_level(logging.WARNING):
        reporter = operator.reporter(interval=0.01)
        for step in range(3):
            reporter.update(step=step)
            eventually(partial(operator.has_step, str(step)))
        reporter.close()
    complaints = [record.message for record in caplog.records if "a progress report was lost" in record.message]
    assert len(complaints) == 1
    assert str(status) in complaints[0]
    assert all("token" not in complaint for complaint in complaints)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"url": "https://127.0.0.1:1/"}, "refused"),
        ({"ca_path": "/nonexistent/ca.crt"}, "No such file"),
        ({"url": "http://127.0.0.1:1/"}, "must be https"),
    ],
)
def test_what_goes_wrong_is_logged_and_nothing_else(operator: Operator, changes: dict[str, str], cause: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reporter = operator.reporter(url=changes.get("url", ""), ca_path=changes.get("ca_path", ""))
        reporter.update(step=1)
        reporter.close()
    assert cause in caplog.text
    assert operator.requests == []


def test_without_a_url_nothing_is_sent() -> None:
    reporter = Reporter(Reporting())
    reporter.update(step=1)
    reporter.close()
