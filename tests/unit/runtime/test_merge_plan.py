"""What an adapter adds to which tensor of a base, which files the merged model has, and what is not merged."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.merge import plan
from finetune_runtime.merge.adapter import Delta, deltas
from finetune_runtime.merge.tensors import Tensor, encode_header, read_header

LAYER = "model.layers.0.self_attn.q_proj"
BASE = {"model.embed_tokens.weight", f"{LAYER}.weight", "lm_head.weight"}
TIED = BASE - {"lm_head.weight"}


def config(**fields: Any) -> bytes:
    return json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", **fields}).encode()


def factors(*modules: str, rank: int = 8, kind: str = "lora_{}.weight", dtype: str = "F32") -> dict[str, Tensor]:
    found = {}
    for module in modules:
        for part, shape in (("A", (rank, 32)), ("B", (64, rank))):
            name = f"base_model.model.{module}.{kind.format(part)}"
            found[name] = Tensor(name, dtype, shape, 0, 4 * rank * 32)
    return found


SCALES = [
    ("alpha over rank", {}, 8, 2.0),
    ("over the root of the rank with rsLoRA", {"use_rslora": True, "r": 16, "lora_alpha": 8}, 16, 2.0),
    ("a module's own rank", {"rank_pattern": {"q_proj": 4}}, 4, 4.0),
    ("a module's own alpha", {"alpha_pattern": {"layers.0.self_attn.q_proj": 32}}, 8, 4.0),
    ("another module's own alpha", {"alpha_pattern": {"layers.1.self_attn.q_proj": 32}}, 8, 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "rank", "scale"), [c[1:] for c in SCALES], ids=[c[0] for c in SCALES])
def test_the_product_is_scaled_as_in_training(fields: dict[str, Any], rank: int, scale: float) -> None:
    found = deltas(config(**fields), factors(LAYER, rank=rank))
    assert {name: (delta.scale, delta.shape) for name, delta in found.items()} == {f"{LAYER}.weight": (scale, (64, 32))}


def test_an_embedding_is_changed_by_the_transposed_product() -> None:
    found = deltas(config(), factors("model.embed_tokens", kind="lora_embedding_{}"))
    assert found["model.embed_tokens.weight"].shape == (32, 64)


REFUSED = [
    ("DoRA", config(use_dora=True), factors(LAYER), "DoRA (use_dora)"),
    ("whole modules", config(modules_to_save=["lm_head"]), factors(LAYER), "modules_to_save"),
    ("single tokens", config(trainable_token_indices=[3]), factors(LAYER), "trainable_token_indices"),
    ("biases", config(bias="lora_only"), factors(LAYER), "bias: lora_only"),
    ("another method", config(peft_type="IA3"), factors(LAYER), "the type IA3"),
    ("a base of its own", config(init_lora_weights="pissa_niter_4"), factors(LAYER), "init_lora_weights: pissa_niter_4"),
    ("a magnitude vector", config(), factors(LAYER) | {"x.lora_magnitude_vector": Tensor("x", "F32", (64,), 0, 256)}, "x.lora_magnitude_vector"),
    ("half of a pair", config(), dict(list(factors(LAYER).items())[:1]), f"only one of the two factors for {LAYER}"),
    ("factors that do not fit", config(), factors(LAYER) | {k: v for k, v in factors(LAYER, rank=4).items() if "lora_B" in k}, "do not fit together"),
    ("another rank than it says", config(r=16), factors(LAYER), "says rank 16"),
    ("whole numbers", config(), factors(LAYER, dtype="I8"), "in I8"),
    ("nothing", config(), {}, "changes no tensor"),
    ("no configuration", b"{}", factors(LAYER), "adapter_config.json of the adapter cannot be read"),
    ("no rank", config(r=0), factors(LAYER), "no rank"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tensors", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_more_than_a_sum_is_refused_by_name_and_with_a_cure(text: bytes, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(StepError) as refused:
        deltas(text, tensors)
    assert words in refused.value.message
    assert refused.value.code is Exit.INVALID_CONFIG
    assert "AsTrained or None" in refused.value.message


FILES = [
    ("one file", ["model.safetensors", "config.json"], None, ("model.safetensors",)),
    ("as the index says", ["a.safetensors", "b.safetensors", "x.safetensors"], {"weight_map": {"t": "b.safetensors", "u": "a.safetensors"}}, ("a.safetensors", "b.safetensors")),
    ("the same weights a second time", ["consolidated.safetensors", "model.safetensors"], None, ("model.safetensors",)),
    ("no index", ["b.safetensors", "a.safetensors"], None, ("a.safetensors", "b.safetensors")),
]  # fmt: skip


@pytest.mark.parametrize(("files", "index", "wanted"), [c[1:] for c in FILES], ids=[c[0] for c in FILES])
def test_the_files_that_loading_reads_are_merged(files: list[str], index: dict[str, Any] | None, wanted: tuple[str, ...]) -> None:
    assert plan.shards(files, index) == wanted


@pytest.mark.parametrize(
    ("files", "index", "words"),
    [(["pytorch_model.bin"], None, "no safetensors"), (["a.safetensors"], {"weight_map": {"t": "b.safetensors"}}, "names b.safetensors, which is not there")],
    ids=["pickles", "a file is missing"],
)
def test_a_base_without_its_files_is_refused(files: list[str], index: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(StepError, match=words):
        plan.shards(files, index)


@pytest.mark.parametrize("where", ["config", "text_config"])
def test_a_base_that_is_quantised_itself_is_refused(where: str) -> None:
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(StepError, match=r"quantised itself \(fp8\)"):
        plan.check_base(quantised if where == "config" else {"text_config": quantised})


def made(*modules: str, base: set[str] = BASE, files: tuple[str, ...] = ("model.safetensors",), embedding: bool = False, **fields: Any) -> plan.Plan:
    found: dict[str, Delta] = deltas(config(), factors(*modules))
    if embedding:
        found |= deltas(config(), factors("model.embed_tokens", kind="lora_embedding_{}"))
    return plan.make(found, base, files, fields)


def test_linear_layers_leave_tied_ones_alone() -> None:
    found = made(LAYER, base=TIED, tie_word_embeddings=True)
    assert (found.untied, set(found.deltas), found.name("model.safetensors")) == (None, {f"{LAYER}.weight"}, "model.safetensors")
    assert plan.merged_config(b'{"x": 1}', found) == b'{"x": 1}'
    assert plan.merged_index(None, found, {"t": "model.safetensors"}, 4) is None


def test_an_output_layer_of_its_own_is_an_ordinary_tensor() -> None:
    found = made("lm_head", tie_word_embeddings=False)
    assert (found.untied, set(found.deltas)) == (None, {"lm_head.weight"})


@pytest.mark.parametrize(("modules", "embedding", "with_delta"), [(["lm_head"], False, True), ([LAYER], True, False), (["lm_head"], True, True)])
def test_tied_layers_are_parted_where_they_are_changed(modules: list[str], embedding: bool, with_delta: bool) -> None:
    found = made(*modules, base=TIED, embedding=embedding)  # many configurations leave the default of tie_word_embeddings out
    assert found.untied is not None
    assert (found.untied.source, found.untied.delta is not None) == ("model.embed_tokens.weight", with_delta)
    assert "lm_head.weight" not in found.deltas
    # model.safetensors would be taken for the whole model.
    assert (found.name("model.safetensors"), found.untied.name) == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert json.loads(plan.merged_config(b'{"text_config": {"tie_word_embeddings": true}}', found)) == {
        "text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": False,
    }  # fmt: skip
    assert json.loads(plan.merged_index(None, found, {"t": "f"}, 4) or b"") == {"metadata": {"total_size": 4}, "weight_map": {"t": "f"}}


def test_an_output_layer_that_is_stored_though_it_is_tied_needs_no_further_file() -> None:
    found = made("lm_head", tie_word_embeddings=True)
    assert (found.untied, found.parted, set(found.deltas)) == (None, True, {"lm_head.weight"})
    assert json.loads(plan.merged_config(b"{}", found)) == {"tie_word_embeddings": False}


def test_in_several_files_the_output_layer_gets_one_more() -> None:
    found = made("lm_head", base=TIED, files=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    assert found.untied is not None
    assert (found.names, found.untied.name) == ({}, "model-output.safetensors")


UNKNOWN = [
    ("stored under another name", ["model.layers.0.mlp.experts.0.up_proj"], BASE, {}, "experts.0.up_proj.weight"),
    ("an output layer that is called otherwise", ["lm_head"], TIED, {"tie_word_embeddings": False}, "lm_head.weight"),
    ("an embedding that is called otherwise", ["lm_head"], {"wte"}, {}, "lm_head.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("modules", "base", "fields", "words"), [c[1:] for c in UNKNOWN], ids=[c[0] for c in UNKNOWN])
def test_what_the_base_does_not_have_is_refused_by_name(modules: list[str], base: set[str], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(StepError, match=words):
        made(*modules, base=base, **fields)


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    start = encode_header([("b", "BF16", (2, 3)), ("a", "F32", (1,))])
    path.write_bytes(start + bytes(16))
    assert len(start) % 8 == 0
    assert {t.name: (t.dtype, t.shape, t.start - len(start), t.end - len(start)) for t in read_header(path).tensors.values()} == {
        "b": ("BF16", (2, 3), 0, 12), "a": ("F32", (1,), 12, 16),
    }  # fmt: skip


def _file(header: bytes, data: int = 0) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(data)


BROKEN = [
    ("nothing", b""),
    ("not the format", b"PK\x03\x04" * 10),
    ("cut off in the header", _file(b'{"a": {}}')[:12]),
    ("no JSON", _file(b"{{{{")),
    ("no sizes", _file(b'{"a": {"dtype": "F32"}}')),
    ("sizes that are no whole numbers", _file(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', 4)),
    ("cut off in a tensor", _file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 4)),
    ("another size than the shape", _file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', 4)),
    ("one tensor upon another", _file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}', 4)),
]  # fmt: skip


@pytest.mark.parametrize("content", [c[1] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_a_file_that_is_not_whole_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(StepError, match=r"x.safetensors is not a whole safetensors file") as refused:
        read_header(path)
    assert refused.value.code is Exit.MODEL_INVALID
