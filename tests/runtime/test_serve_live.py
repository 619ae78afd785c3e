"""Adapters that come into a running vLLM and go: fetch, serve, follow and ready in the inference image, as the containers of one pod.

Runs on a machine that has both images, outside of them: `pytest -c tests/runtime/pytest.ini tests/runtime/test_serve_live.py`.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import ADAPTERS_PORT, AdapterReport, ServeConfig
from tests.runtime.serving import LEARNED, PORT, Endpoint, Learned, Pod, is_ready, pod_directory, post
from tests.runtime.support import CLINIC, Server, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("buildah"), reason="needs the images, so it does not run inside of one")

ROWS = {name: [[m["content"] for m in json.loads(line)["messages"]] for line in CLINIC.read_text().splitlines()[rows]] for name, rows in LEARNED.items()}


class LivePod:
    """Engine and sidecar of one pod, and the configuration that both read."""

    def __init__(self, config: ServeConfig, refs: dict[str, Any], directory: Path, environment: dict[str, str]) -> None:
        self.config, self.refs, self.directory = config, refs, directory
        Pod("inference-cpu", "fetch", config, directory, environment).run()
        self.endpoint = Endpoint(config, directory)
        self.sidecar = Pod("inference-cpu", "follow", config, directory, environment)
        self.following: subprocess.Popen[bytes] | None = None

    def follow(self) -> None:
        self.following = self.sidecar.start()

    def want(self, names: dict[str, str], trial: dict[str, str] | None = None) -> None:
        """What the kubelet does when the ConfigMap has changed. `names`: which adapter is served under which name."""
        first, *others = sorted(names)
        document = self.config.dump() | {
            "servedName": first,
            "adapter": self.refs[names[first]],
            "others": [{"name": other, "adapter": self.refs[names[other]]} for other in others],
        }
        document["live"] |= {"trial": [{"name": name, "adapter": self.refs[ref]} for name, ref in (trial or {}).items()]}
        for step in ("follow", "serve"):
            path = self.directory / f"{step}.json"
            path.with_suffix(".new").write_text(json.dumps(document))
            path.with_suffix(".new").rename(path)

    def states(self) -> dict[str, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ADAPTERS_PORT}/", timeout=5) as response:
                report = AdapterReport.model_validate_json(response.read())
        except OSError:
            return {}
        return {state.name: state.state if state.state != "Refused" else state.message for state in report.adapters}

    def settled(self, *names: str) -> None:
        wait_for(f"{names} in every report", lambda: self.states() == dict.fromkeys(names, "Served"), 60)


@pytest.fixture(scope="module")
def pod(learned: Learned, s3_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePod]:
    directory = pod_directory(tmp_path_factory.mktemp("pods"))
    found = LivePod(learned.serving(live={"maxAdapters": 2}), dict(learned.adapters), directory, s3_server.environment)
    try:
        found.follow()
        found.endpoint.start(is_ready)
        yield found
    finally:
        for process in (found.following, found.endpoint.process):
            if process and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def answer(question: str, model: str, **options: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64} | options
    found = post("/v1/chat/completions", body)
    assert found["model"] == model
    return str(found["choices"][0]["message"]["content"])


def listed() -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
        return {model["id"] for model in json.load(response)["data"]}


def engines(root: int) -> list[int]:
    """Processes of vLLM below one, all of which end with their container."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    found, below = [], {root}
    for pid, parent, args in (line.split(maxsplit=2) for line in listed):  # in the order in which they began
        if int(parent) in below:
            below.add(int(pid))
            found += [int(pid)] if "vllm" in args.lower() else []
    return found


def of_two_blocks(questions: list[str]) -> str:
    """A question that is longer than a block of the prefix cache, so that its beginning is computed once for each adapter."""
    words, tokens = "", 0
    while tokens <= 140:
        words += f" {questions[len(words) % len(questions)]}"
        tokens = post("/tokenize", {"model": "base", "messages": [{"role": "user", "content": words}]})["count"]
    assert tokens < 190
    return words


def knows(name: str, adapter: str) -> bool:
    return all(answer(question, name) == expected for question, expected in ROWS[adapter])


def test_a_new_name_is_loaded_beside_the_one_that_is_served(pod: LivePod) -> None:
    assert listed() == {"base", "support"}
    pod.want({"support": "support"}, trial={"rooms#1": "rooms"})
    started = time.monotonic()
    pod.settled("support", "rooms#1")
    print(f"a trial was loaded after {time.monotonic() - started:.1f} s")
    assert knows("rooms#1", "rooms")
    assert knows("support", "support")
    pod.want({"support": "support", "rooms": "rooms"})
    pod.settled("support", "rooms")
    assert listed() == {"base", "support", "rooms"}
    assert knows("rooms", "rooms")


def test_a_name_gets_another_adapter_while_clients_ask_it_and_every_answer_is_whole(pod: LivePod) -> None:
    questions = [question for rows in ROWS.values() for question, _ in rows]
    questions.append(of_two_blocks(questions))
    old, new = ({question: answer(question, name) for question in questions} for name in ("support", "rooms"))
    assert all(old[question] != new[question] for question in questions)
    story: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
    told = answer("Tell me a story.", "support", **story)
    found: list[tuple[str, str]] = []
    faults: list[str] = []
    over = threading.Event()

    def ask(turn: int) -> None:
        while not over.is_set():
            question = questions[turn % len(questions)]
            turn += 1
            try:
                found.append((question, answer(question, "support")))
            except Exception as error:  # noqa: BLE001  whatever it is, a client would have seen it
                faults.append(str(error))

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask, turn) for turn in (0, 5)]
        time.sleep(2)
        running = pool.submit(answer, "Tell me a story.", "support", **story)
        pod.want({"support": "rooms", "rooms": "rooms"})
        pod.settled("support", "rooms")
        assert running.result() == told, "it was finished by the weights that began it"
        time.sleep(2)
        over.set()
        for client in clients:
            client.result()
    assert faults == []
    wrong = [(question, text) for question, text in found if text not in (old[question], new[question])]
    kinds = [text == new[question] for question, text in found]
    print(f"{len(found)} answers, {sum(kinds)} of them by the new adapter")
    assert wrong == []
    assert (kinds[0], kinds[-1]) == (False, True)
    assert kinds == sorted(kinds) or kinds.index(True) > len(kinds) - sum(kinds) - 3, "at most the clients' last old answers come after the first new one"
    assert knows("support", "rooms")


def test_a_name_that_is_not_wanted_any_more_is_gone(pod: LivePod) -> None:
    pod.want({"support": "support"})
    pod.settled("support")
    assert listed() == {"base", "support"}
    assert knows("support", "support")


def test_an_engine_that_died_gets_the_same_list_again(pod: LivePod) -> None:
    pod.want({"support": "support", "rooms": "rooms"})
    pod.settled("support", "rooms")
    assert pod.endpoint.process
    for engine in engines(pod.endpoint.process.pid):
        os.kill(engine, signal.SIGKILL)
    pod.endpoint.process.wait(60)
    assert pod.states() == {"support": "Waiting", "rooms": "Waiting"}
    pod.endpoint.start(is_ready)
    pod.settled("support", "rooms")
    assert knows("support", "support")
    assert knows("rooms", "rooms")


def test_a_sidecar_that_died_goes_on_without_a_change(pod: LivePod) -> None:
    assert pod.following
    os.killpg(pod.following.pid, signal.SIGTERM)
    pod.following.wait(60)
    pod.follow()
    pod.settled("support", "rooms")
    assert pod.endpoint.pod.ready().returncode == 0


def test_what_cannot_be_loaded_is_refused_and_the_others_are_served(pod: LivePod) -> None:
    pod.refs["gone"] = pod.refs["rooms"] | {"uri": "s3://learned/nothing"}
    pod.refs["gone"]["manifestSha256"] = "0" * 64
    pod.want({"support": "support", "rooms": "rooms"}, trial={"rooms#2": "gone"})
    wait_for("a refusal", lambda: "holds no committed adapter" in pod.states().get("rooms#2", ""), 60)
    assert pod.endpoint.pod.ready().returncode == 0
    assert knows("support", "support")
    pod.want({"support": "support", "rooms": "rooms"})
    pod.settled("support", "rooms")


@pytest.mark.parametrize("path", ["/finetune/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_nobody_outside_of_the_pod_loads_or_takes_away_an_adapter(pod: LivePod, method: str, path: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, and tells the address that others see
        outside = probe.getsockname()[0]
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}):
        connection = http.client.HTTPConnection(outside, PORT, timeout=10)
        connection.request(method, path, json.dumps({"name": "support", "path": "/etc"}), {"Content-Type": "application/json", **headers})
        assert connection.getresponse().status in (404, 405)
        connection.close()
    assert "support" in listed()
