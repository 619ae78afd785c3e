"""The prepare step and the models that it is given: whole, broken, known, unknown."""

import json
import shutil
from pathlib import Path

import pytest

from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.prepare import run
from finetune_runtime.s3.store import Store
from tests.runtime.preparing import committed, refusal_of, summary_of
from tests.runtime.support import MakeConfig, Server

pytestmark = pytest.mark.usefixtures("scratch")


def test_model_in_s3_is_judged_without_downloading_weights(
    data: Path, bucket: str, s3_server: Server, tiny_model: Path, scratch: Path, store: Store, job_config: MakeConfig
) -> None:
    client = s3_server.client()
    for path in tiny_model.iterdir():
        client.upload_file(str(path), bucket, f"base/tiny/{path.name}")
    config = job_config(model={"source": f"s3://{bucket}/base/tiny"})
    assert summary_of(config).train_rows == 142
    assert (scratch / "prepare/model/tokenizer.json").exists()
    assert not list(scratch.rglob("*.safetensors"))
    client.put_object(Bucket=bucket, Key="base/tiny/modeling_tiny.py", Body=b"")
    refused = refusal_of(config.model_copy(update={"job": config.job.model_copy(update={"uid": "2"})}))
    assert (refused.code, refused.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert "brings Python code" in refused.message


def test_choices_are_listed_when_the_template_cannot_be_known(data: Path, job_config: MakeConfig) -> None:
    refused = refusal_of(job_config(model={"type": "", "template": ""}))
    assert refused.reason is Reason.MODEL_INVALID
    assert "is of type qwen3, which has several chat templates: set spec.model.template to one of: qwen3, " in refused.message


def test_model_is_known_by_its_published_name(data: Path, sources: Path, tiny_model: Path, store: Store, job_config: MakeConfig) -> None:
    shutil.copytree(tiny_model, sources / "pvc/models/Qwen3-0.6B")
    config = job_config(model={"source": "pvc://models/Qwen3-0.6B", "type": "", "template": ""})
    run(config)
    assert json.loads(committed(store, config, "report.json"))["model"]["template"] == "qwen3"


BROKEN_MODELS = {
    "tokenizer.json": "The configuration or tokenizer of pvc://models/tiny-qwen3 cannot be opened as qwen3: ",
    "tokenizer_config.json": "pvc://models/tiny-qwen3/tokenizer_config.json cannot be read: ",
    "model.safetensors": "1 of 1 weight files of pvc://models/tiny-qwen3 are not whole: model.safetensors is empty",
}


@pytest.mark.parametrize("file", BROKEN_MODELS)
def test_broken_model_is_refused(data: Path, sources: Path, job_config: MakeConfig, file: str) -> None:
    config = job_config()
    path = sources / "pvc/models/tiny-qwen3" / file
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if file.endswith("json") else b"")
    refused = refusal_of(config)
    assert (refused.code, refused.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert refused.message.startswith(BROKEN_MODELS[file])
