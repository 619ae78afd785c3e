"""What of a model decides its training's memory, read from headers and config.json."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.model_shape import ModelShape, from_config, from_tensors, tensors
from finetune_runtime.contract.result import MAX_MESSAGE_BYTES, DataSummary
from finetune_runtime.prepare import shards
from finetune_runtime.prepare.shape import find_shape

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True,
}  # fmt: skip
GPT2: dict[str, Any] = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 20, "tie_word_embeddings": True}
Tensors = dict[str, list[int]]


def llama(config: dict[str, Any], prefix: str = "model.") -> Iterator[tuple[str, list[int]]]:
    """Tensors of Llama and its relatives, as their files name them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield f"{prefix}embed_tokens.weight", [config["vocab_size"], hidden]
    for layer in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{layer}."
        yield from ((f"{at}self_attn.{name}_proj.weight", [size, hidden]) for name, size in (("q", query), ("k", key), ("v", key)))
        yield f"{at}self_attn.o_proj.weight", [hidden, query]
        yield from ((f"{at}mlp.{name}_proj.weight", [inner, hidden]) for name in ("gate", "up"))
        yield f"{at}mlp.down_proj.weight", [hidden, inner]
        yield from ((f"{at}{name}_layernorm.weight", [hidden]) for name in ("input", "post_attention"))
    yield f"{prefix}norm.weight", [hidden]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [config["vocab_size"], hidden]


def header(found: Tensors, dtype: str = "BF16") -> bytes:
    """The beginning of a safetensors file with these tensors."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in found.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def read(found: Tensors, config: dict[str, Any], dtype: str = "BF16") -> ModelShape | None:
    """The shape by the bytes of one file's header."""
    content = header(found, dtype)
    return from_tensors(tensors(shards.tensors(lambda start, length: content[start : start + length])), config)


def test_qwen3_8b_by_its_headers() -> None:
    shape = read(dict(llama(QWEN3_8B)), QWEN3_8B)
    assert shape is not None
    assert shape.dump() == {
        "parameters": 8_190_726_144,
        "linearParameters": 6_945_767_424,
        "embeddingParameters": 1_244_659_712,
        "largestLinear": 4096 * 12288,
        "adapterWidths": {"q_proj": 294912, "k_proj": 184320, "v_proj": 184320, "o_proj": 294912, "gate_proj": 589824, "up_proj": 589824, "down_proj": 589824},
        "weightBytes": 2,
        "layers": 36,
        "hiddenSize": 4096,
        "intermediateSize": 12288,
        "attentionHeads": 32,
        "keyValueHeads": 8,
        "headDim": 128,
        "vocabularySize": 151936,
        "tieWordEmbeddings": False,
    }
    assert shape.other_parameters == 4096 * (2 * 36 + 1)


@pytest.mark.parametrize("config", [pytest.param(QWEN3_8B, id="a head of its own"), pytest.param(SMOLLM2, id="the embedding as head")])
def test_formulas_of_the_configuration_agree_with_the_headers(config: dict[str, Any]) -> None:
    assert from_config(config) == read(dict(llama(config)), config)


HEADERS: dict[str, tuple[Tensors, dict[str, Any], dict[str, Any]]] = {
    "a tied head that the file holds once more counts once": (
        {**dict(llama(SMOLLM2)), "lm_head.weight": [49152, 576]},
        SMOLLM2,
        {"embedding_parameters": 49152 * 576, "parameters": 134_515_008},
    ),
    "the language model of a multimodal one, whose tower gets no adapter": (
        {**dict(llama(SMOLLM2, "model.language_model.")), "model.visual.blocks.0.attn.qkv.weight": [300, 100], "visual.patch.weight": [3, 7]},
        {"text_config": SMOLLM2, "tie_word_embeddings": True},
        {"linear_parameters": 106_168_320, "other_parameters": 576 * 61 + 30000 + 21, "hidden_size": 576},
    ),
    "GPT-2's names, biases and positions": (
        {
            "wte.weight": [20, 8], "wpe.weight": [16, 8], "h.0.attn.c_attn.weight": [8, 24], "h.0.attn.c_attn.bias": [24], "h.0.ln_1.weight": [8],
            "h.1.mlp.c_fc.weight": [8, 32], "ln_f.weight": [8],
        },
        GPT2,
        {"linear_parameters": 8 * 24 + 8 * 32, "embedding_parameters": 160, "other_parameters": 128 + 24 + 8 + 8, "intermediate_size": 32,
         "adapter_widths": {"c_attn": 32, "c_fc": 40}},
    ),
    "experts stay in 16 bits, and a token passes through those that it is sent to": (
        {**dict(llama(SMOLLM2)), "model.layers.0.mlp.experts.0.up_proj.weight": [100, 576], "model.layers.0.mlp.gate.weight": [4, 576]},
        {**SMOLLM2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 100},
        {"linear_parameters": 106_168_320 + 4 * 576, "other_parameters": 576 * 61 + 57600, "intermediate_size": 200},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_read_by_the_names_in_them(case: str) -> None:
    found, config, expected = HEADERS[case]
    shape = read(found, config)
    assert {name: getattr(shape, name) for name in expected} == expected


def test_files_tell_the_precision_that_most_weights_have() -> None:
    shape = read(dict(llama(SMOLLM2)), SMOLLM2, "F32")
    assert shape is not None
    assert shape.weight_bytes == 4


ODD: dict[str, dict[str, Any]] = {
    "an empty configuration": {},
    "another kind of model": {"d_model": 512, "num_layers": 6, "vocab_size": 32128},
    "a size that is a list, one for each stage": {**SMOLLM2, "hidden_size": [64, 128]},
    "a size of zero": {**SMOLLM2, "num_hidden_layers": 0},
    "heads as text": {**SMOLLM2, "num_attention_heads": "9"},
    "an inner width for each layer": {**SMOLLM2, "intermediate_size": [512] * 30},
    "key heads for each layer": {**SMOLLM2, "num_key_value_heads": [3] * 30},
}


@pytest.mark.parametrize("case", ODD)
def test_odd_configurations_give_no_shape_and_no_error(case: str) -> None:
    assert from_config(ODD[case]) is None
    assert read(dict(llama(SMOLLM2)), ODD[case]) is None


def test_formulas_are_not_used_for_what_they_do_not_describe() -> None:
    assert from_config(GPT2) is None
    assert from_config({**SMOLLM2, "num_experts": 8, "num_experts_per_tok": 2}) is None


BROKEN = {
    "pickles, which have no header": [],
    "a file without a sound header": [b"1234567"],
    "a header of other tensors": [header({"a.weight": [3, 4]})],
}


@pytest.mark.parametrize("case", BROKEN)
def test_configuration_alone_is_read_where_headers_say_nothing(case: str) -> None:
    files = {f"{number}.safetensors": content for number, content in enumerate(BROKEN[case])}
    assert find_shape(SMOLLM2, list(files), lambda path, start, length: files[path][start : start + length]) == from_config(SMOLLM2)


@pytest.mark.parametrize("entry", ['{"dtype": "F32", "shape": ["x"]}', '{"dtype": "F32"}', "[]", '{"dtype": [], "shape": [1]}'])
def test_malformed_tensor_is_a_warning_and_no_error(caplog: pytest.LogCaptureFixture, entry: str) -> None:
    text = b'{"a.weight": %s}' % entry.encode()
    content = struct.pack("<Q", len(text)) + text
    assert find_shape(SMOLLM2, ["a.safetensors"], lambda _path, start, length: content[start : start + length]) is None
    assert "the memory of the training is not estimated" in caplog.text


def test_packed_weights_are_judged_by_the_configuration() -> None:
    config = {**SMOLLM2, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert read(dict(llama(SMOLLM2)), config) is None
    content = header(dict(llama(SMOLLM2)), "U8")
    assert find_shape(config, ["a"], lambda _path, start, length: content[start : start + length]) == from_config(SMOLLM2)


def test_shards_are_read_together(tmp_path: Path) -> None:
    items = list(llama(QWEN3_8B))
    for number in range(4):
        (tmp_path / f"{number}.safetensors").write_bytes(header(dict(items[number::4])))

    def part(path: str, start: int, length: int) -> bytes:
        return (tmp_path / path).read_bytes()[start : start + length]

    assert find_shape(QWEN3_8B, [f"{number}.safetensors" for number in range(4)], part) == from_config(QWEN3_8B)


def test_shape_travels_in_a_termination_message() -> None:
    summary = DataSummary(train_rows=1, validation_rows=1, shape=from_config(QWEN3_8B))
    assert DataSummary.model_validate(summary.dump()) == summary
    assert len(json.dumps(summary.dump())) < MAX_MESSAGE_BYTES / 6
