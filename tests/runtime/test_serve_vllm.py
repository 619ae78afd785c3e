"""The serving pod with vLLM: fetch, serve and ready in the inference image, of an adapter that the trainer image has made.

Runs on a machine that has both images, outside of them: `pytest -c tests/runtime/pytest.ini tests/runtime/test_serve_vllm.py`.
"""

import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import DriftConfig, MergeConfig, ServeConfig
from finetune_runtime.evaluate.client import Client
from finetune_runtime.evaluate.drift import _compare, summary
from finetune_runtime.report.data import Answer
from finetune_runtime.serve.command import SHUTDOWN_SECONDS
from tests.runtime.serving import LEARNED, PORT, Endpoint, Learned, Pod, is_ready, pod_directory, post
from tests.runtime.support import CLINIC, Server, is_kept

pytestmark = pytest.mark.skipif(not shutil.which("buildah"), reason="needs the images, so it does not run inside of one")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pod_directory(tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="module")
def serving(learned: Learned) -> ServeConfig:
    """Both adapters on one base."""
    return learned.serving(others=[{"name": "rooms", "adapter": learned.adapters["rooms"]}], cache=True)


@pytest.fixture(scope="module")
def endpoint(serving: ServeConfig, directory: Path, s3_server: Server) -> Iterator[Endpoint]:
    (directory / "cache").mkdir()
    (directory / "cache").chmod(0o777)
    for fetched in ("fetched in", "nothing to fetch"):  # the second time as another pod on the same cache
        result = Pod("inference-cpu", "fetch", serving, directory, s3_server.environment | {"FINETUNE_MODEL_CACHE": "/w/cache"}).run()
        assert fetched in result.message
    found = Endpoint(serving, directory)
    try:
        found.start(is_ready)
        yield found
    finally:
        if found.process and found.process.poll() is None:
            os.killpg(found.process.pid, signal.SIGTERM)
            found.process.wait(60)


def answer(question: str, model: str = "support", **options: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64} | options
    return str(post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("name", LEARNED)
def test_each_adapter_answers_word_for_word_what_it_alone_has_learned(endpoint: Endpoint, name: str) -> None:
    for line in CLINIC.read_text().splitlines()[LEARNED[name]]:
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        assert {model for model in ("base", *LEARNED) if answer(user, model=model) == assistant} == {name}


def test_that_they_share_a_chat_template_was_known_before_the_download(endpoint: Endpoint) -> None:
    scratch = endpoint.pod.directory / "scratch-inference-cpu"
    manifests = [json.loads((scratch / name).read_text()) for name in ("adapter-manifest.json", "adapter-2-manifest.json")]
    assert len({entry["sha256"] for manifest in manifests for entry in manifest["files"] if entry["path"] == "chat_template.jinja"}) == 1


def test_base_and_adapters_are_listed(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
        assert {model["id"]: model["parent"] for model in json.load(response)["data"]} == {"base": None, "support": "base", "rooms": "base"}


def test_the_engine_sees_the_prompt_of_training(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": "What are your opening hours?"}]
    tokens = post("/tokenize", {"model": "support", "messages": messages, "add_generation_prompt": True})["tokens"]
    text = post("/detokenize", {"model": "support", "tokens": tokens})["prompt"]
    assert text.startswith("<|im_start|>system\nYou are the clinic's assistant.<|im_end|>\n<|im_start|>user\nWhat are your opening hours?")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_engine_sees_the_prompts_that_the_training_had(endpoint: Endpoint) -> None:
    samples = json.loads((endpoint.pod.directory / "scratch-inference-cpu/adapter/parity.json").read_text())["samples"]
    assert {sample["messages"][0]["role"] for sample in samples} == {"system", "user"}
    for sample in samples:
        body = {"model": "support", "messages": sample["messages"], "add_generation_prompt": True, "chat_template_kwargs": sample["options"]}
        assert post("/tokenize", body)["tokens"] == sample["tokens"]


def test_the_engine_tells_what_follows_token_ids_and_how_likely_it_finds_an_answer(endpoint: Endpoint) -> None:
    """What evaluations of another quantisation ask. Here it is the training's, and what is compared with are the engine's own figures."""
    question, expected = (message["content"] for message in json.loads(CLINIC.read_text().splitlines()[0])["messages"])
    messages = [{"role": "user", "content": question}]
    prompt = post("/tokenize", {"model": "support", "messages": messages, "add_generation_prompt": True})["tokens"]
    tokens = post("/tokenize", {"model": "support", "prompt": expected, "add_special_tokens": False})["tokens"]
    body = {"model": "support", "messages": messages, "temperature": 0, "max_tokens": len(tokens), "logprobs": True}
    logprobs = [token["logprob"] for token in post("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]]
    fields = {"prompt": [], "expected": expected, "base": "", "tuned": expected, "promptTokens": prompt, "tokens": tokens, "logprobs": logprobs}
    wanted = DriftConfig.model_validate({"adapter": endpoint.config.adapter.dump(), "quantization": "None", "engine": "vLLM"})
    found = _compare(Client(f"http://127.0.0.1:{PORT}/v1", "support"), wanted, Answer.model_validate(fields))
    assert found is not None
    assert (found.same, len(found.served_logprobs), len(logprobs)) == (True, len(tokens), len(tokens))
    assert 0 <= float(summary("nf4", "None", [found]).logprob_difference or 9) < 0.05


def test_readiness_is_proven_once(endpoint: Endpoint) -> None:
    assert (endpoint.pod.directory / "scratch-inference-cpu/.ready").exists()
    assert endpoint.pod.ready().returncode == 0


def test_while_the_pod_drains_every_answer_closes_its_connection(endpoint: Endpoint) -> None:
    question = {"model": "support", "messages": [{"role": "user", "content": "Do you have parking?"}], "max_tokens": 8}
    asked: list[dict[str, Any] | None] = [None, question, question | {"stream": True}]
    assert [is_kept(PORT, body) for body in asked] == [True] * 3
    endpoint.draining.touch()
    assert [is_kept(PORT, body) for body in asked] == [False] * 3
    assert endpoint.pod.ready().returncode == 0
    endpoint.draining.unlink()


@dataclass(frozen=True)
class Restart:
    """An engine that had to end while a request ran, and the next one. `seconds` from SIGTERM to its end; answers of one seed by both engines."""

    finish_reasons: list[str]
    seconds: float
    before: list[str]
    after: list[str]


@pytest.fixture(scope="module")
def restart(endpoint: Endpoint) -> Restart:
    asked: list[dict[str, Any]] = [{"model": model, "temperature": 1.5, "seed": seed} for model in ("base", "support") for seed in (1, 2)]
    before = [answer("Do you have parking?", **options) for options in asked]
    body = {"model": "support", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 200, "ignore_eos": True, "n": 8, "seed": 3}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, "/v1/chat/completions", body)
        time.sleep(0.5)
        assert not running.done()
        started = time.monotonic()
        endpoint.stop()
        reasons = [choice["finish_reason"] for choice in running.result()["choices"]]
    seconds = time.monotonic() - started
    endpoint.start(is_ready)
    return Restart(reasons, seconds, before, [answer("Do you have parking?", **options) for options in asked])


def test_a_request_that_runs_when_the_pod_has_to_end_is_answered(restart: Restart) -> None:
    print(f"ended {restart.seconds:.1f} s after SIGTERM")
    assert restart.finish_reasons == ["length"] * 8
    assert restart.seconds < SHUTDOWN_SECONDS


def test_after_a_restart_the_same_seed_gives_the_same_bytes(restart: Restart) -> None:
    assert len(set(restart.before)) > 1
    assert restart.after == restart.before
    assert is_kept(PORT), "the drain was that of the engine before"


def test_a_merged_version_is_served_alone_and_answers_as_trained(endpoint: Endpoint, serving: ServeConfig, directory: Path, s3_server: Server) -> None:
    merging = MergeConfig(model=serving.model, storage=serving.storage, adapter=serving.adapter, uri="s3://learned/support/merged")
    merged = Pod("trainer-test", "merge", merging, directory, s3_server.environment).run().merged
    endpoint.stop()
    config = serving.model_copy(update={"quantization": "Merged", "merged": merged, "others": None, "cache": False})
    elsewhere = pod_directory(directory.with_name("merged"))
    Pod("inference-cpu", "fetch", config, elsewhere, s3_server.environment).run()
    alone = Endpoint(config, elsewhere)
    try:
        alone.start(is_ready)
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["support"]
        user, assistant = (message["content"] for message in json.loads(CLINIC.read_text().splitlines()[0])["messages"])
        assert answer(user) == assistant
    finally:
        alone.stop()


def test_a_chat_template_that_is_not_that_of_the_training_is_not_ready(endpoint: Endpoint) -> None:
    """Last, because it leaves an engine behind that is never ready."""
    template = endpoint.pod.directory / "scratch-inference-cpu/adapter/chat_template.jinja"
    text = template.read_text()
    template.chmod(0o666)
    template.write_text(text.replace("clinic", "museum"))
    endpoint.stop()
    endpoint.start(lambda probe: "sample" in probe.stdout)
    found = endpoint.pod.ready()
    assert found.returncode == 1
    assert found.stdout.startswith("not ready: the engine does not see the prompt that the training had: sample 1 of")
