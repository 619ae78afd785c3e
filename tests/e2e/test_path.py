"""The whole path: dataset -> checked -> trained -> committed -> served, on a real cluster."""

import hashlib
import json
import urllib.request
from typing import Any

import pytest
from openai import OpenAI

from .cluster import content, forward, get, items, keys, kubectl, wait
from .conftest import Jobs

PORT = 18111


def answer(url: str, model: str) -> str:
    client = OpenAI(base_url=url, api_key="none", timeout=60)
    reply = client.chat.completions.create(model=model, temperature=0, max_tokens=24, messages=[{"role": "user", "content": "What is the code of room 7?"}])
    return reply.choices[0].message.content or ""


def manifest(uri: str) -> tuple[dict[str, Any], str]:
    data = content(f"{uri}/manifest.json")
    return json.loads(data), hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("engine", ["vLLM", pytest.param("Swift", marks=pytest.mark.long)])
def test_a_job_goes_from_rows_to_an_endpoint_that_answers_as_trained(jobs: Jobs, engine: str) -> None:
    memory = "4Gi" if engine == "vLLM" else "3Gi"
    jobs.submit(inference={"engine": engine, "servedName": "rooms", "resources": {"cpu": "250m", "memory": memory, "scratch": "5Gi"}})
    seen = jobs.until(lambda s: (s.get("progress") or {}).get("step") and s["phase"] == "Training", 120, what="a step reported while training")
    assert seen["progress"]["totalSteps"] == 24
    status = jobs.phase("Succeeded", 240)

    assert (status["dataset"]["trainRows"], status["dataset"]["validationRows"], status["dataset"]["invalidRows"]) == (57, 3, 0)
    assert status["display"]["step"] == "24/24"
    assert float(status["progress"]["loss"]) < 6
    assert [c["type"] for c in status["conditions"] if c["status"] == "True"] == ["Accepted", "DataReady", "Trained", "Deployed", "Succeeded"]
    adapter, digest = manifest(status["artifact"]["adapter"]["uri"])
    assert digest == status["artifact"]["adapter"]["manifestSha256"]
    assert (adapter["step"], adapter["totalSteps"], adapter["baseModel"]) == (24, 24, jobs.model)
    assert {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"} <= {f["path"] for f in adapter["files"]}
    kept = {k.split("/checkpoints/")[1].split("/")[0] for k in keys("finetune", f"{jobs.prefix()}/checkpoints/")}
    assert kept == {"checkpoint-20", "checkpoint-24"}

    url = forward(jobs.namespace, "job", PORT) + "/v1"
    tuned = answer(url, "rooms")
    assert tuned
    assert not tuned.startswith("<think>")
    if engine == "vLLM":
        assert tuned != answer(url, "base")
        with urllib.request.urlopen(f"{url}/models", timeout=10) as models:
            assert {m["id"] for m in json.load(models)["data"]} == {"base", "rooms"}
    row = kubectl("-n", jobs.namespace, "get", "finetunejobs").splitlines()
    assert row[0].split() == ["NAME", "PHASE", "STEP", "LOSS", "ETA", "ATTEMPT", "REASON", "ENDPOINT", "AGE"]
    assert row[1].split()[:3] == ["job", "Succeeded", "24/24"]
    events = [e["reason"] for e in items("events", jobs.namespace) if e["involvedObject"]["kind"] == "FineTuneJob"]
    assert "Completed" in events
    assert "Deployed" in events


@pytest.mark.long
def test_retraining_rolls_the_same_endpoint_to_the_new_version(jobs: Jobs) -> None:
    inference = {"endpoint": "desk", "engine": "Swift", "strategy": {"watchSeconds": 20}, "resources": {"cpu": "250m", "memory": "3Gi", "scratch": "5Gi"}}
    short = {"epochs": 1, "learningRate": "1e-3", "maxLength": 256, "effectiveBatchSize": 8}
    jobs.submit("first", inference=inference, training=short)
    jobs.phase("Succeeded", 240, "first")
    jobs.submit("second", inference=inference, training={**short, "seed": 7})
    jobs.phase("Succeeded", 240, "second")
    endpoint = get("modelendpoint", "desk", jobs.namespace)
    assert [(v["role"], v["job"]) for v in endpoint["status"]["versions"]] == [("Current", "second"), ("Previous", "first")]
    wait("only the new version has pods", lambda: len(items("deployments", jobs.namespace)) == 1, 60)
    kubectl("-n", jobs.namespace, "delete", "finetunejobs", "--all")
    assert get("modelendpoint", "desk", jobs.namespace)["status"]["conditions"][0]["status"] == "True"
