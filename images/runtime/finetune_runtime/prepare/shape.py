"""The sizes of a model, from its weight files' headers: what the operator estimates the training's memory by."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from finetune_runtime.contract.model_shape import ModelShape, from_config, from_tensors, tensors

from . import shards
from .model_check import READERS, ReadPart

log = logging.getLogger(__name__)


def find_shape(config: Mapping[str, Any], weights: Sequence[str], read_part: ReadPart) -> ModelShape | None:
    """By the headers of the safetensors files `weights`; by config.json alone where there are none (pickles, hubs).

    None for a model that is built in another way: its job runs without an estimate. Raises what `read_part` raises, nothing of its own.
    """
    try:
        return _by_headers(config, weights, read_part) or from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the memory of the training is not estimated, the model's sizes cannot be read: %s: %s", type(error).__name__, error)
        return None


def _by_headers(config: Mapping[str, Any], weights: Sequence[str], read_part: ReadPart) -> ModelShape | None:
    with ThreadPoolExecutor(READERS) as pool:
        headers = list(pool.map(lambda path: shards.tensors(lambda start, length: read_part(path, start, length)), weights))
    return from_tensors([tensor for header in headers for tensor in tensors(header)], config)
