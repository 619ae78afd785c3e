"""Live adapters on a real API server: the tests stand in for the kubelet and for what runs in the pods, which says at its port what it serves."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from finetune_runtime.contract.config import ADAPTERS_PORT
from tests.integration.operator_process import Namespace, Operator, wait
from tests.integration.test_endpoint import GATE, Endpoint, candidate, endpoint

ADDRESS = "127.0.0.1"


class Pods(Endpoint):
    """The pods of one host. `states`: what all of them say, by the first letter of an adapter's digest; `obedient`: they load what they are told."""

    def __init__(self, here: Namespace) -> None:
        super().__init__(here)
        self.obedient = True
        self.refused: dict[str, str] = {}

    def config(self) -> dict[str, Any]:
        host = next((v["host"] for v in self.status().get("versions", []) if v["role"] in ("Current", "Candidate")), "")
        found = self.here.get("configmap", host) if host else {}
        return dict(json.loads(found["data"]["config.json"])) if found else {}

    def told(self) -> dict[str, str]:
        """Letters of adapters by name, those that are tried with them."""
        config = self.config()
        entries = [{"name": config["servedName"], "adapter": config["adapter"]}, *config.get("others", []), *config["live"].get("trial", [])]
        return {entry["name"]: entry["adapter"]["manifestSha256"][0] for entry in entries}

    def report(self) -> dict[str, Any]:
        states = []
        for name, letter in self.told().items():
            state = "Refused" if letter in self.refused else "Served" if self.obedient else "Waiting"
            states.append({"name": name, "manifestSha256": letter * 64, "state": state, "message": self.refused.get(letter, "it is fetched")})
        return {"adapters": states}

    def start(self) -> str:
        """The pods of the host answer. Returns its name."""
        host = wait("a host", lambda: next((v["host"] for v in self.status().get("versions", []) if v.get("host")), ""))
        for pod in wait("its pods", lambda: self.here.items("pods", f"finetune.dev/version={host}")):
            name = pod["metadata"]["name"]
            running = {
                "name": "main",
                "image": "x",
                "imageID": "",
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
            ready = {"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running]}
            self.here.set_pod(name, {"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}], **ready})
        return host


@pytest.fixture
def pods(operator: Operator, here: Namespace) -> Iterator[Pods]:
    found = Pods(here)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(found.report()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer((ADDRESS, ADAPTERS_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here.apply(endpoint(adapterLoading="Live", candidate=candidate("a")))
    yield found
    server.shutdown()
    server.server_close()


def test_adapters_come_and_go_in_the_pods_that_are_there(pods: Pods) -> None:
    host = pods.start()
    assert pods.until("a", "Current")["host"] == host
    assert pods.traffic() == host
    before = {p["metadata"]["uid"] for p in pods.here.items("pods")}
    pods.obedient = False
    pods.edit(candidate=candidate("b"))
    name = pods.until("b", "Candidate")["name"]
    wait("the pods are told to try it", lambda: pods.told() == {"support": "a", f"support#{name}": "b"})
    note = wait("a note on the pod", lambda: (pods.here.items("pods")[0]["metadata"].get("annotations") or {}).get("finetune.dev/adapters"))
    pods.obedient = True
    pods.until("b", "Current")
    assert pods.told() == {"support": "b"}
    wait("another note", lambda: pods.here.items("pods")[0]["metadata"]["annotations"]["finetune.dev/adapters"] != note)
    assert {p["metadata"]["uid"] for p in pods.here.items("pods")} == before
    assert [d["metadata"]["name"] for d in pods.here.items("deployments")] == [host]
    pods.edit(version="a")
    wait("the old adapter is served again", lambda: pods.version("a")["role"] == "Current" and pods.told() == {"support": "a"})


def test_one_that_pods_cannot_load_is_given_up_with_their_words(pods: Pods) -> None:
    pods.start()
    pods.until("a", "Current")
    pods.refused["b"] = "LoRA rank 128 is greater than max_lora_rank 64: set spec.maxLoraRank"
    pods.edit(candidate=candidate("b"))
    rejected = pods.until("b", "Rejected")
    assert rejected["reason"] == "FetchFailed"
    assert "set spec.maxLoraRank" in rejected["message"]
    wait("nothing is tried any more", lambda: pods.told() == {"support": "a"})


def test_the_gate_asks_it_where_nobody_else_does(pods: Pods) -> None:
    host = pods.start()
    pods.until("a", "Current")
    pods.edit(candidate=candidate("b"), gate=GATE)
    name = pods.until("b", "Candidate")["name"]
    config = wait("what the gate asks", lambda: pods.here.get("configmap", f"{host}-gate"))
    asked = json.loads(config["data"]["config.json"])["candidate"]
    assert asked["model"] == f"support#{name}"
    assert asked["url"].startswith(f"http://{host}.")
    pods.evaluation(False, "pass rate 0.00 is below minPassRate 0.80")
    assert pods.until("b", "Rejected")["reason"] == "GateClosed"
    wait("nothing is tried any more", lambda: pods.told() == {"support": "a"})
