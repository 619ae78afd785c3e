"""The step merge: the merged model is base plus adapter, tensor by tensor and in its answers, with a real S3 server."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import AdapterRef, MergeConfig
from finetune_runtime.contract.result import Exit, StepError, StepResult
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.merge import step
from finetune_runtime.merge.tensors import encode_header
from finetune_runtime.s3.store import Store
from finetune_runtime.serve.fetch import check_merged
from tests.runtime.support import Proxy, Server, Step

# PEFT warns of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(3, 67).reshape(2, 32)
Merge = Callable[[MergeConfig], StepResult]


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as SmolLM2: a Llama whose output layer is its embedding, in several files."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True
    )
    directory = tmp_path_factory.mktemp("models") / "tied-llama"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="200KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def adapt(model: Path, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    """An adapter with random factors, saved; returns base and adapter together, in `dtype`."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    found = get_peft_model(base, LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | options))
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    found.save_pretrained(directory, save_embedding_layers=False)
    return found.eval()


class Place:
    """A base and an adapter in storage."""

    def __init__(self, store: Store, storage: S3Storage, bucket: str) -> None:
        self.store, self.storage, self.bucket = store, storage, bucket

    def put(self, model: Path, adapter: Path) -> MergeConfig:
        for path in model.iterdir():
            self.store.upload(path, f"s3://{self.bucket}/base/{path.name}")
        source = f"s3://{self.bucket}/base"
        manifest = Manifest(kind=Kind.ADAPTER, files=[], config_hash="c", base_model=source, step=4, total_steps=4, details={"loraRank": 8})
        ref = artefacts.commit(self.store, adapter, f"s3://{self.bucket}/job/adapter", manifest, replace=True)
        return MergeConfig.model_validate(
            {"model": {"source": source}, "storage": self.storage.dump(), "adapter": ref.dump(), "uri": f"s3://{self.bucket}/support/merged"}
        )

    def get(self, ref: AdapterRef, directory: Path) -> Path:
        check_merged(self.store, ref)
        artefacts.fetch(self.store, ref.uri, directory, ref.manifest_sha256)
        return directory


@pytest.fixture
def place(store: Store, storage: S3Storage, bucket: str) -> Place:
    return Place(store, storage, bucket)


@pytest.fixture
def merge(scratch: Path) -> Merge:
    """The step in this process, which has torch already."""
    return step.run


def ref_of(result: StepResult) -> AdapterRef:
    assert result.merged is not None
    return result.merged


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(TOKENS).logits.float())


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 64}}], ids=["lora", "rslora"]
)
@pytest.mark.parametrize("base", ["tiny_model", "tied_model"])
def test_every_tensor_is_that_of_peft_and_answers_are_those_of_base_and_adapter(
    base: str, options: dict[str, Any], request: pytest.FixtureRequest, place: Place, merge: Merge, tmp_path: Path
) -> None:
    model = request.getfixturevalue(base)
    both = adapt(model, tmp_path / "adapter", **options)
    expected = logits(both)
    directory = place.get(ref_of(merge(place.put(model, tmp_path / "adapter"))), tmp_path / "merged")
    found, stored = tensors(directory), tensors(model)
    assert found.keys() == stored.keys()
    exact = both.merge_and_unload().state_dict()  # in 32 bits
    changed = 0
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (stored[name].dtype, stored[name].shape), name
        # Rounded once, to 8 bits of precision; the rest is the rounding of what it is compared with.
        assert torch.all((tensor.float() - exact[name]).abs() <= exact[name].abs() * 2**-8 + 1e-7), name
        changed += not torch.equal(tensor, stored[name])
    assert changed == sum(name.rpartition(".")[0].rpartition(".")[2] in LINEAR for name in stored)
    merged = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    # All that is left of the difference is the rounding of the weights to 16 bits.
    assert (logits(merged) - expected).abs().max() < 0.02 * expected.abs().max()
    rounded = merged.to(torch.bfloat16)
    with torch.no_grad():
        again = adapt(model, tmp_path / "again", torch.bfloat16, **options)
        assert (rounded(TOKENS).logits.float() - again(TOKENS).logits.float()).abs().max() < 0.05 * expected.abs().max()


def test_a_base_in_32_bits_stays_so_and_gives_the_same_numbers(tied_model: Path, place: Place, merge: Merge, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tied_model, dtype=torch.float32).save_pretrained(tmp_path / "base")
    both = adapt(tmp_path / "base", tmp_path / "adapter")
    expected = logits(both)
    directory = place.get(ref_of(merge(place.put(tmp_path / "base", tmp_path / "adapter"))), tmp_path / "merged")
    exact, found = both.merge_and_unload().state_dict(), tensors(directory)
    assert max((found[name] - exact[name]).abs().max() for name in found) < 1e-6
    assert (logits(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"]], ids=["output", "embedding"])
@pytest.mark.parametrize("files", ["one", "several"])
def test_an_adapter_of_one_of_two_tied_layers_parts_them(targets: list[str], files: str, tied_model: Path, place: Place, merge: Merge, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tied_model, dtype=torch.float32).save_pretrained(
        tmp_path / "base", max_shard_size="300KB" if files == "several" else "1GB"
    )
    both = adapt(tmp_path / "base", tmp_path / "adapter", target_modules=targets)
    expected = logits(both)
    directory = place.get(ref_of(merge(place.put(tmp_path / "base", tmp_path / "adapter"))), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert not merged.config.tie_word_embeddings
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)


def test_the_same_content_is_merged_once_and_always_to_the_same_bytes(tied_model: Path, place: Place, merge: Merge, tmp_path: Path) -> None:
    adapt(tied_model, tmp_path / "adapter")
    config = place.put(tied_model, tmp_path / "adapter")
    first = merge(config)
    again = merge(config)
    assert again.merged == first.merged
    assert "already" in again.message
    manifest = artefacts.load(place.store, ref_of(first).uri)
    assert manifest is not None
    assert {item.key.rpartition("/")[2] for item in place.store.list(f"{ref_of(first).uri}/")} == {entry.path for entry in manifest.files} | {"manifest.json"}
    artefacts.delete(place.store, ref_of(first).uri)
    elsewhere = merge(config.model_copy(update={"cpu_threads": 2}))
    made = artefacts.load(place.store, ref_of(elsewhere).uri)
    assert made is not None
    assert (made.files, ref_of(elsewhere).uri) == (manifest.files, ref_of(first).uri)
    torch.manual_seed(6)
    other = place.put(tied_model, _another(tmp_path))
    assert ref_of(merge(other)).uri != ref_of(first).uri


def _another(tmp_path: Path) -> Path:
    """An adapter with other factors."""
    directory = shutil.copytree(tmp_path / "adapter", tmp_path / "another")
    weights = {name: tensor * 2 for name, tensor in load_file(directory / "adapter_model.safetensors").items()}
    save_file(weights, directory / "adapter_model.safetensors", {"format": "pt"})
    return Path(directory)


def test_a_pod_that_is_killed_leaves_what_it_has_uploaded_to_the_next_one(
    tied_model: Path, place: Place, merge: Merge, s3_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt(tied_model, tmp_path / "adapter")
    config = place.put(tied_model, tmp_path / "adapter")
    whole = place.get(ref_of(merge(config)), tmp_path / "whole")
    artefacts.delete(place.store, ref_of(merge(config)).uri)
    proxy = Proxy(s3_server.endpoint)
    proxy.stall_on = b"model-00003-of-"
    try:
        through = config.model_copy(update={"storage": config.storage.model_copy(update={"endpoint": proxy.endpoint})})
        killed = Step("merge", through, tmp_path / "killed", s3_server.environment)
        killed.wait_for("file 2 of")
        killed.kill()
    finally:
        proxy.close()
    caplog.clear()
    with caplog.at_level("INFO"):
        found = place.get(ref_of(merge(config)), tmp_path / "merged")
    fetched = [message for message in caplog.messages if " fetched, " in message and ".safetensors" in message]
    assert fetched
    assert not [message for message in fetched if message.startswith(("model-00001-of-", "model-00002-of-"))]
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {path.name: path.read_bytes() for path in whole.iterdir()}


REFUSED = [
    ("DoRA", {"use_dora": True}, "DoRA"),
    ("whole modules", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_peft_saves_of_other_methods_is_refused_by_name(
    options: dict[str, Any], words: str, tied_model: Path, place: Place, merge: Merge, tmp_path: Path
) -> None:
    adapt(tied_model, tmp_path / "adapter", **options)
    with pytest.raises(StepError, match=words) as refused:
        merge(place.put(tied_model, tmp_path / "adapter"))
    assert refused.value.code is Exit.INVALID_CONFIG


def test_an_adapter_of_another_base_is_refused(tied_model: Path, place: Place, merge: Merge, tmp_path: Path) -> None:
    adapt(tied_model, tmp_path / "adapter")
    config = place.put(tied_model, tmp_path / "adapter")
    with pytest.raises(StepError, match="its own base only"):
        merge(config.model_copy(update={"model": config.model.model_copy(update={"source": "s3://models/other"})}))


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The largest tensor of a model is its embedding; this one has half a GiB, and the other processes of the pod's image need as much again."""
    shape, rank = (65536, 4096), 8
    base, weights = tmp_path / "model.safetensors", tmp_path / "adapter.safetensors"
    start = encode_header([("lm_head.weight", "BF16", shape)])
    with base.open("wb") as file:  # zeros that take no room
        file.write(start)
        file.truncate(len(start) + 2 * shape[0] * shape[1])
    prefix = "base_model.model.lm_head"
    save_file({f"{prefix}.lora_A.weight": torch.ones(rank, shape[1]), f"{prefix}.lora_B.weight": torch.ones(shape[0], rank)}, weights)
    program = f"""
import resource
from pathlib import Path
from finetune_runtime.merge.adapter import deltas
from finetune_runtime.merge.rewrite import rewrite
from finetune_runtime.merge.tensors import read_header
base, weights = Path({str(base)!r}), Path({str(weights)!r})
found = deltas(b'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}}}', read_header(weights).tensors)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert rewrite(base, read_header(base), found, weights, Path({str(tmp_path / "merged")!r})) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 * 1024  # KiB
    end = (tmp_path / "merged").read_bytes()[-4:]
    assert torch.frombuffer(bytearray(end), dtype=torch.bfloat16).tolist() == [rank, rank]
