"""The fast path is judged with the model, before a GPU is taken."""

from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.prepare.fast_path import check_fast_path

QWEN3 = {"model_type": "qwen3", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


def config(wanted: str, **sections: Any) -> JobConfig:
    base: dict[str, Any] = {
        "job": {"namespace": "n", "name": "j", "uid": "u"}, "model": {"source": "hf://Qwen/Qwen3-8B"}, "dataset": {"train": [{"source": "s3://d/t.json"}]},
        "tuning": {}, "training": {"fastPath": wanted}, "checkpoints": {}, "storage": {"uri": "s3://models/finetune"},
    }  # fmt: skip
    return JobConfig.model_validate(base | sections)


FOUND = [
    pytest.param("Auto", QWEN3, "", id="a model that can take it"),
    pytest.param("Required", QWEN3, "", id="a model that can take it, and must"),
    pytest.param("Auto", QWEN3 | {"attention_bias": True}, "unsupported: bias in o_proj", id="a model that cannot"),
    pytest.param("Off", QWEN3, None, id="a job that does not want it"),
]


@pytest.mark.parametrize(("wanted", "model", "reason"), FOUND)
def test_what_prepare_finds(wanted: str, model: dict[str, Any], reason: str | None) -> None:
    assert check_fast_path(config(wanted), model) == reason


@pytest.mark.parametrize(
    ("model", "sections", "reason"),
    [(QWEN3 | {"attention_bias": True}, {}, "bias in o_proj"), (QWEN3, {"tuning": {"lora": {"rank": 12}}}, "rank 12 is not a multiple of 8")],
    ids=["the model", "the job"],
)
def test_a_job_that_requires_it_is_refused_with_the_reason_and_a_cure(model: dict[str, Any], sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(StepError, match=rf"unsupported: {reason}.*Auto") as error:
        check_fast_path(config("Required", **sections), model)
    assert (error.value.code, error.value.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)


def test_how_it_is_computed_does_not_make_it_another_training() -> None:
    assert len({config(wanted).config_hash() for wanted in ("Auto", "Off", "Required")}) == 1
