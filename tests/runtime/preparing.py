"""What the tests of the prepare step share: the step run in this process, and what it leaves."""

import json
from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import DataSummary, Reason, StepError
from finetune_runtime.prepare import run
from finetune_runtime.s3.store import Store


def committed(store: Store, config: JobConfig, name: str) -> bytes:
    return store.read(f"{config.prefix}/dataset/{name}")


def rows(store: Store, config: JobConfig, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in committed(store, config, name).splitlines()]


def summary_of(config: JobConfig) -> DataSummary:
    result = run(config)
    assert result.reason is Reason.COMPLETED
    assert result.data
    return result.data


def refusal_of(config: JobConfig) -> StepError:
    with pytest.raises(StepError) as caught:
        run(config)
    return caught.value
