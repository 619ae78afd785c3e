"""The engines' command lines: base as trained, prompt as trained, one adapter under its name."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import ServeConfig
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.hardware import Gpu, Hardware
from finetune_runtime.serve.command import Adapter, check_served, check_together, environment, swift, vllm
from finetune_runtime.serve.drain import Drain
from finetune_runtime.serve.switch import Switch

GPU = Hardware((Gpu("NVIDIA L4", 24 * 2**30),))
OLD_GPU = Hardware((Gpu("Tesla T4", 16 * 2**30),), bfloat16=False)
CPU = Hardware()
OLD_CPU = Hardware(bfloat16=False)
NF4 = {"method": "bnb", "bits": 4, "type": "nf4", "doubleQuant": True, "computeDtype": "bfloat16"}


def config(**fields: Any) -> ServeConfig:
    base: dict[str, Any] = {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "storage": {"uri": "s3://models"},
        "adapter": {"uri": "s3://models/n/j/u/adapter", "manifestSha256": "a" * 64},
        "engine": "vLLM",
        "quantization": "AsTrained",
        "servedName": "support",
        "maxLength": 2048,
    }
    return ServeConfig.model_validate(base | fields)


def manifest(**details: Any) -> Manifest:
    known = {"loraRank": 64, "modelType": "qwen3", "template": "qwen3", "system": "", "computeDtype": "bfloat16", "quantization": NF4}
    return Manifest(
        kind=Kind.ADAPTER,
        files=[],
        config_hash="h",
        base_model="hf://Qwen/Qwen3-8B",
        details={name: value for name, value in (known | details).items() if value is not None},
    )


def line(engine: str, *, hardware: Hardware = GPU, fields: dict[str, Any] | None = None, **details: Any) -> str:
    build = {"vLLM": vllm, "Swift": swift}[engine]
    words = build(config(engine=engine, **fields or {}), manifest(**details), hardware, model=Path("/scratch/model"), adapter=Path("/scratch/adapter"))
    return " ".join(words)


@pytest.mark.parametrize(
    ("trained", "allowed"),
    [(1, 1), (4, 8), (8, 8), (9, 16), (24, 32), (64, 64), (65, 128), (200, 256), (300, 320), (321, 512), (512, 512)],
)
def test_vllm_gets_the_next_rank_that_it_has_kernels_for(trained: int, allowed: int) -> None:
    assert f"--max-lora-rank {allowed} " in line("vLLM", loraRank=trained)


def test_vllm_serves_base_and_adapter_with_the_artefacts_template() -> None:
    command = line("vLLM")
    assert command.startswith("vllm serve /scratch/model --host 0.0.0.0 --port 8000 --served-model-name base ")
    lora = '{"name": "support", "path": "/scratch/adapter", "base_model_name": "base"}'
    assert f"--lora-modules {lora} --chat-template /scratch/adapter/chat_template.jinja --chat-template-content-format string" in command
    assert "--max-model-len 2048" in command


@pytest.mark.parametrize("engine", ["vLLM", "Swift"])
def test_a_merged_model_is_served_under_the_endpoints_name_without_adapter_base_or_quantisation(engine: str) -> None:
    words = line(engine, fields={"quantization": "Merged", "merged": {"uri": "s3://models/merged/1", "manifestSha256": "b" * 64}})
    assert "served-model-name support " in words.replace("_", "-")
    for word in ("lora", "adapters", "bitsandbytes", "quant", " base"):
        assert word not in words, word
    assert "chat_template.jinja" in words or "--template_backend jinja" in words
    assert "bfloat16" in words


def test_vllm_lets_running_requests_finish_within_the_pods_grace_period() -> None:
    words = line("vLLM").split()
    assert 0 < int(words[words.index("--shutdown-timeout") + 1]) < 60


def test_vllm_gets_the_middleware_that_closes_kept_connections_by_a_name_that_it_can_import() -> None:
    words = line("vLLM").split()
    module, _, name = words[words.index("--middleware") + 1].rpartition(".")
    assert getattr(importlib.import_module(module), name) is Drain


@pytest.mark.parametrize(
    ("details", "parser", "case"),
    [
        ({"template": "qwen3", "reasons": True}, "qwen3", "reasoning is beside the answer"),
        ({"template": "qwen3_thinking", "reasons": True}, "qwen3", "a model that always reasons"),
        ({"template": "deepseek_r1", "reasons": True}, "deepseek_r1", "another model's way"),
        ({"template": "qwen3", "reasons": False}, "", "the prompt has ended the reasoning; the parser would take the answer for it"),
        ({"template": "chatml", "reasons": True}, "", "no parser is known"),
        ({"template": "qwen3"}, "", "an adapter of an older release, which does not say"),
    ],
)
def test_vllm_parses_reasoning_only_where_the_adapter_reasons(details: dict[str, Any], parser: str, case: str) -> None:
    words = line("vLLM", **details).split()
    assert (words[words.index("--reasoning-parser") + 1] if "--reasoning-parser" in words else "") == parser, case


@pytest.mark.parametrize(
    ("fields", "details", "hardware", "present", "absent", "case"),
    [
        ({}, {}, GPU, "--dtype bfloat16 --quantization bitsandbytes", "--enforce-eager", "QLoRA as trained"),
        ({"quantization": "None"}, {}, GPU, "--dtype bfloat16", "--quantization", "a 16-bit base, because the user asks for it"),
        ({}, {"quantization": None}, GPU, "--dtype bfloat16", "--quantization", "LoRA was trained on a 16-bit base"),
        ({}, {"computeDtype": "float16"}, OLD_GPU, "--dtype float16 --quantization bitsandbytes", "bfloat16", "float16 as trained"),
        ({}, {}, OLD_GPU, "--dtype float16", "bfloat16", "the 16 bits that the GPU has"),
        ({}, {"computeDtype": "float32"}, CPU, "--dtype bfloat16 --quantization bitsandbytes", "float32", "bitsandbytes does not start in float32"),
        ({}, {"computeDtype": "float32"}, OLD_GPU, "--dtype float16 --quantization bitsandbytes", "float32", "nor is there bfloat16"),
        ({}, {}, OLD_CPU, "--dtype bfloat16 --quantization bitsandbytes", "float32", "slow, and as it was trained"),
        ({"quantization": "None"}, {}, OLD_CPU, "--dtype float32", "bfloat16", "what a CPU without bfloat16 computes fastest"),
        ({}, {}, CPU, "--enforce-eager", "--trust-remote-code", "sizes for a development machine"),
        ({}, {}, CPU, "--no-enable-chunked-prefill --max-num-batched-tokens 2048", "tokens 256", "a prompt as long as the context is taken in whole"),
        ({"maxLength": 64}, {}, CPU, "--max-num-batched-tokens 256", "tokens 64", "room for several short prompts at once"),
        ({"model": {"source": "hf://Qwen/Qwen3-8B", "trustRemoteCode": True}}, {}, GPU, "--trust-remote-code", "--enforce-eager", "remote code accepted"),
    ],
)
def test_vllm_options(fields: dict[str, Any], details: dict[str, Any], hardware: Hardware, present: str, absent: str, case: str) -> None:
    command = line("vLLM", hardware=hardware, fields=fields, **details)
    assert present in command, case
    assert absent not in command, case


def test_swift_serves_base_and_adapter_without_repeating_the_prompts_prefix() -> None:
    words = swift(config(engine="Swift"), manifest(), GPU, model=Path("/scratch/engine-model"), adapter=Path("/scratch/adapter"))
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[1:3] == ["-m", "finetune_runtime.serve.swift_server"]
    assert flags["--adapters"] == "support=/scratch/adapter"
    assert flags["--served_model_name"] == "base"
    assert flags["--load_args"] == "false"
    assert (flags["--template_backend"], flags["--response_prefix"]) == ("jinja", "")
    assert (flags["--quant_bits"], flags["--bnb_4bit_quant_type"], flags["--bnb_4bit_use_double_quant"]) == ("4", "nf4", "true")
    assert flags["--verbose"] == "false"
    assert "--system" not in flags


@pytest.mark.parametrize(
    ("fields", "details", "present", "absent", "case"),
    [
        ({}, {"quantization": NF4 | {"bits": 8}}, "--quant_bits 8", "bnb_4bit", "8 bits"),
        ({}, {"quantization": None}, "--torch_dtype bfloat16", "quant", "LoRA"),
        ({"quantization": "None"}, {}, "--torch_dtype bfloat16", "quant", "a 16-bit base, because the user asks for it"),
        ({}, {"system": "Be brief."}, "--system Be brief.", "--load_args true", "the job's system prompt, not the template's"),
        ({}, {"reasons": True}, "--enable_thinking true", "--enable_thinking false", "the template's own default, which ms-swift would override"),
        ({}, {"reasons": False}, "--enable_thinking false", "--enable_thinking true", "as trained"),
        ({}, {}, "--template qwen3", "--enable_thinking", "an adapter of an older release, which does not say"),
    ],
)
def test_swift_options(fields: dict[str, Any], details: dict[str, Any], present: str, absent: str, case: str) -> None:
    command = line("Swift", fields=fields, **details)
    assert present in command, case
    assert absent not in command, case


@pytest.mark.parametrize(
    ("fields", "details", "cure", "case"),
    [
        ({"model": {"source": "hf://Qwen/Qwen3-4B"}}, {}, "its own base only", "an adapter of another base"),
        ({}, {"quantization": NF4 | {"bits": 8}}, "engine to Swift", "8 bits under vLLM"),
        ({}, {"quantization": NF4 | {"type": "fp4"}}, "engine to Swift", "fp4 under vLLM"),
        ({"servedName": "base"}, {}, "choose another one", "the adapter under the base model's name"),
    ],
)
def test_what_could_only_answer_badly_is_refused_with_the_cure(fields: dict[str, Any], details: dict[str, Any], cure: str, case: str) -> None:
    with pytest.raises(StepError, match=cure) as caught:
        check_served(config(**fields), manifest(**details))
    assert (caught.value.code, caught.value.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG), case


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({}, {}),
        ({}, {"quantization": None}),
        ({"engine": "Swift"}, {"quantization": NF4 | {"bits": 8}}),
        ({"quantization": "None"}, {"quantization": NF4 | {"bits": 8}}),
    ],
)
def test_what_the_engine_can_serve_is_accepted(fields: dict[str, Any], details: dict[str, Any]) -> None:
    check_served(config(**fields), manifest(**details))


FILES = [{"path": "chat_template.jinja", "size": 1, "sha256": "c" * 64}]
SECOND = {"name": "rooms", "adapter": {"uri": "s3://models/n/rooms/u/adapter", "manifestSha256": "b" * 64}}
THIRD = {"name": "team/bills@2", "adapter": {"uri": "s3://models/n/bills/u/adapter", "manifestSha256": "d" * 64}}


def several(**fields: Any) -> Manifest:
    """An adapter that goes with others."""
    details = {name: fields.pop(name) for name in [*fields] if name not in Manifest.model_fields}
    return Manifest.model_validate(manifest(**details).model_dump() | {"files": FILES} | fields)


def test_vllm_serves_several_adapters_each_under_its_name_with_room_for_the_largest() -> None:
    ranks = {"rooms": 16, "team/bills@2": 100}
    others = [Adapter(name, manifest(loraRank=rank), Path(f"/scratch/adapter-{place}")) for place, (name, rank) in enumerate(ranks.items(), 2)]
    config_ = config(others=[SECOND, THIRD])
    command = vllm(config_, manifest(loraRank=8), GPU, model=Path("/scratch/model"), adapter=Path("/scratch/adapter"), others=others)
    assert " ".join(command[command.index("--max-loras") :][:4]) == "--max-loras 3 --max-lora-rank 128"
    modules = [json.loads(word) for word in command[command.index("--lora-modules") + 1 :][:3]]
    assert {module["name"]: module["path"] for module in modules} == {
        "support": "/scratch/adapter", "rooms": "/scratch/adapter-2", "team/bills@2": "/scratch/adapter-3"
    }  # fmt: skip
    assert {module["base_model_name"] for module in modules} == {"base"}
    assert command[command.index("--chat-template") + 1] == "/scratch/adapter/chat_template.jinja"


@pytest.mark.parametrize(
    ("live", "slots", "case"),
    [
        ({"maxAdapters": 4}, "--max-loras 5 --max-lora-rank 64", "one more for what is tried, and the rank of those that are there"),
        ({"maxAdapters": 1, "maxLoraRank": 200}, "--max-loras 2 --max-lora-rank 256", "room for a larger rank"),
        ({"maxAdapters": 1, "maxLoraRank": 8}, "--max-loras 2 --max-lora-rank 64", "never less than what is there needs"),
    ],
)
def test_vllm_starts_without_adapters_and_with_room_where_they_come_and_go(live: dict[str, Any], slots: str, case: str) -> None:
    there = [Adapter("", manifest(loraRank=rank), Path("/scratch/adapters/1")) for rank in (16, 64)]
    words = vllm(config(live=live), manifest(loraRank=8), GPU, model=Path("/scratch/model"), adapter=Path("/scratch/adapter"), others=there)
    line = " ".join(words)
    assert words[1:4] == ["-m", "finetune_runtime.serve.vllm_server", "serve"]
    assert f"--served-model-name base --enable-lora {slots} --chat-template /scratch/adapter/chat_template.jinja" in line, case
    assert "--lora-modules" not in words
    middlewares = [words[place + 1].rpartition(".") for place, word in enumerate(words) if word == "--middleware"]
    assert [getattr(importlib.import_module(module), name) for module, _, name in middlewares] == [Drain, Switch]


@pytest.mark.parametrize(
    ("fields", "second", "said", "case"),
    [
        ({"engine": "Swift"}, {}, "Engine Swift serves one adapter only, not 2: set spec.engine to vLLM", "the other engine"),
        ({"quantization": "Merged"}, {}, "Merged weights are one model: set spec.quantization to AsTrained or None", "merged"),
        ({}, {"base_revision": "v2"}, "one revision of the base model for all", "another revision of the base"),
        ({}, {"quantization": None}, "one quantisation of the base model for all: s3://models/n/rooms/u/adapter was trained with none", "LoRA beside QLoRA"),
        ({}, {"computeDtype": "float16"}, "one type to compute in for all", "another type"),
        (
            {},
            {"files": [FILES[0] | {"sha256": "e" * 64}]},
            "with chat_template.jinja of SHA-256 eeeeeeeeeeee, s3://models/n/j/u/adapter with",
            "another system prompt",
        ),
        ({}, {"files": []}, "one chat template for all", "no template at all"),
        ({}, {"reasons": True}, "one way to take reasoning out of answers for all", "one reasons, one does not"),
    ],
)
def test_adapters_that_one_server_cannot_serve_as_trained_are_refused_by_name(fields: dict[str, Any], second: dict[str, Any], said: str, case: str) -> None:
    with pytest.raises(StepError) as caught:
        check_together(config(others=[SECOND], **fields), [several(), several(**second)])
    assert said in caught.value.message, case
    assert "an endpoint of its own" in caught.value.message, case
    assert (caught.value.code, caught.value.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG), case


@pytest.mark.parametrize(
    ("fields", "second", "case"),
    [
        ({}, {"loraRank": 8}, "ranks may differ"),
        ({}, {"quantization": NF4 | {"doubleQuant": False}}, "a difference of rounding only"),
        ({"quantization": "None"}, {"quantization": None}, "on a 16-bit base all are alike"),
        ({"engine": "Swift", "others": None}, None, "one alone"),
    ],
)
def test_adapters_that_go_together_are_served(fields: dict[str, Any], second: dict[str, Any] | None, case: str) -> None:
    check_together(config(**{"others": [SECOND], **fields}), [several(), *([several(**second)] if second is not None else [])])


def test_the_engine_gets_no_secrets_and_no_telemetry() -> None:
    found = environment({"AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "PATH": "/bin"}, Path("/scratch"), CPU, threads=2)
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & set(found)
    assert found["HF_HUB_OFFLINE"] == found["VLLM_NO_USAGE_STATS"] == found["DO_NOT_TRACK"] == "1"
    assert (found["OMP_NUM_THREADS"], found["TORCHDYNAMO_DISABLE"]) == ("2", "1")
    assert "OMP_NUM_THREADS" not in environment({}, Path("/scratch"), GPU, threads=2)
