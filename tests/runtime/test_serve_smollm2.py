"""A real chat model with the template chatml: vLLM sees token for token what the training saw. Needs both images and tests/fixtures/smollm2.sh."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from finetune_runtime.contract.config import JobConfig, ServeConfig
from finetune_runtime.contract.spec import S3Storage
from tests.runtime.conftest import CACHE
from tests.runtime.serving import Endpoint, Pod, is_ready, pod_directory, post
from tests.runtime.support import CLINIC, DEFAULTS, Server, merged

MODEL = CACHE / "models/SmolLM2-135M-Instruct"

pytestmark = pytest.mark.skipif(not (shutil.which("buildah") and MODEL.exists()), reason="needs the images and the model, so it does not run inside of one")


def test_smollm2_with_chatml_is_ready_with_the_prompts_of_its_training(s3_server: Server, tmp_path: Path) -> None:
    directory = pod_directory(tmp_path)
    shutil.copytree(MODEL, directory / "sources/pvc/models/smollm2")
    (directory / "sources/pvc/data/train.jsonl").write_text("\n".join(CLINIC.read_text().splitlines()[:8]))
    s3_server.client().create_bucket(Bucket="smollm2")
    config = JobConfig.model_validate(
        merged(
            DEFAULTS | {"storage": S3Storage(uri="s3://smollm2", endpoint=s3_server.endpoint).dump()},
            {
                "model": {"source": "pvc://models/smollm2", "type": "llama", "template": "chatml"},
                "dataset": {"validation": {"splitRatio": "0"}},
                "training": {"epochs": 1},
            },
        )
    )
    Pod("trainer-test", "prepare", config, directory, s3_server.environment).run()
    result = Pod("trainer-test", "train", config, directory, s3_server.environment).run()
    assert result.train is not None
    assert result.train.adapter is not None
    document = {"engine": "vLLM", "quantization": "AsTrained", "servedName": "support", "maxLength": 512, "allowCpu": True}
    shared = {"model": config.model.dump(), "storage": config.storage.dump(), "adapter": result.train.adapter.dump()}
    serving = ServeConfig.model_validate(document | shared)
    Pod("inference-cpu", "fetch", serving, directory, s3_server.environment).run()
    endpoint = Endpoint(serving, directory)
    try:
        endpoint.start(is_ready)
        samples = json.loads((directory / "scratch-inference-cpu/adapter/parity.json").read_text())["samples"]
        assert any(sample["messages"][-1]["content"] in CLINIC.read_text() for sample in samples)
        for sample in samples:
            body = {"model": "support", "messages": sample["messages"], "add_generation_prompt": True, "chat_template_kwargs": sample["options"]}
            assert post("/tokenize", body)["tokens"] == sample["tokens"]
    finally:
        if endpoint.process and endpoint.process.poll() is None:
            os.killpg(endpoint.process.pid, signal.SIGTERM)
            endpoint.process.wait(60)
