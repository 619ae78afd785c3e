"""Prompts from a source: every line is checked before anybody is asked, and a fault names line, cause and cure."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.evaluation import EvaluationPrompt
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.evaluate import prompts
from finetune_runtime.s3.store import Store

LINE = {"name": "hours", "prompt": "When are you open?", "expect": {"contains": ["eight"]}}
INLINE = {"name": "address", "prompt": "Where are you?"}
SOURCE = "configmap://questions/prompts.jsonl"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What SOURCE stands for."""
    monkeypatch.setenv("FINETUNE_SOURCES", str(tmp_path / "sources"))
    path = tmp_path / "sources/configmap/questions/prompts.jsonl"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A client that no test here makes talk."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    return Store(S3Storage(uri="s3://models/x", endpoint="http://127.0.0.1:9"))


def load(store: Store, scratch: Path, *gates: dict[str, Any]) -> list[list[EvaluationPrompt]]:
    config = EvaluateConfig.model_validate(
        {
            "endpoint": {"namespace": "team-a", "name": "support", "uid": "u"},
            "version": "support-1a2b3c4d",
            "gates": list(gates),
            "candidate": {"url": "http://127.0.0.1:9/v1", "model": "support"},
            "storage": {"uri": "s3://models/x"},
            "uri": "s3://models/x/evaluations/support-1a2b3c4d",
        }
    )
    return prompts.load(config, store, scratch)


def lines(*documents: Any) -> str:
    return "".join(f"{document if isinstance(document, str) else json.dumps(document)}\n" for document in documents)


def test_inline_prompts_come_first_and_each_gate_has_its_own(file: Path, store: Store, tmp_path: Path) -> None:
    file.write_text("\n" + lines(LINE, {"name": "two", "messages": [{"role": "user", "content": "And on Sunday?"}]}) + "\n  \n")
    found = load(store, tmp_path / "scratch", {"prompts": [INLINE], "promptsFrom": {"source": SOURCE}}, {"evalLoss": {"max": "1"}}, {"prompts": [INLINE]})
    assert [[prompt.name for prompt in gate] for gate in found] == [["address", "hours", "two"], [], ["address"]]
    assert found[0][1] == EvaluationPrompt.model_validate(LINE)


def test_samples_are_the_first_ones_and_nothing_behind_them_is_read(file: Path, store: Store, tmp_path: Path) -> None:
    file.write_text(lines(LINE, {**LINE, "name": "two"}, "{broken"))
    [gate] = load(store, tmp_path / "scratch", {"prompts": [INLINE], "promptsFrom": {"source": SOURCE, "samples": 2}})
    assert [prompt.name for prompt in gate] == ["address", "hours", "two"]


def test_fewer_than_the_samples_are_all(file: Path, store: Store, tmp_path: Path) -> None:
    file.write_text(lines(LINE))
    assert len(load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE, "samples": 50}})[0]) == 1


def test_all_files_of_a_folder_are_read_by_name(file: Path, store: Store, tmp_path: Path) -> None:
    folder = file.parents[2] / "pvc/data/questions"
    folder.mkdir(parents=True)
    (folder / "b.jsonl").write_text(lines(LINE))
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(INLINE).encode())
    [gate] = load(store, tmp_path / "scratch", {"promptsFrom": {"source": "pvc://data/questions"}})
    assert [prompt.name for prompt in gate] == ["address", "hours"]


FAULTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{broken", ":2: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). Each line is one JSON object"),
    "not an object": ('"hours"', ":2: the line: Input should be a valid dictionary or instance of EvaluationPrompt. Each line is one JSON object"),
    "no name": ({"prompt": "When?"}, ":2: name: Field required. Each line is one JSON object"),
    "a name that is too long": ({"name": "n" * 64, "prompt": "When?"}, ":2: name: String should have at most 63 characters."),
    "an expectation with a slip of the pen": ({**LINE, "name": "x", "expect": {"contain": ["a"]}}, ":2: expect.contain: Extra inputs are not permitted. Each"),
    "an unknown field": ({**LINE, "name": "x", "answer": "eight"}, ":2: answer: Extra inputs are not permitted."),
    "a bound that is no number": ({**LINE, "name": "x", "expect": {"maxLatencySeconds": "fast"}}, ":2: expect.maxLatencySeconds: String should match pattern"),
    "a broken regular expression": ({**LINE, "name": "x", "expect": {"regex": "("}}, ":2: expect.regex is not a regular expression: missing ), unterminated subpattern at position 0. Correct the line, or remove it."),
    "a broken schema": ({**LINE, "name": "x", "expect": {"jsonSchema": '{"type": 1}'}}, ":2: expect.jsonSchema is not a JSON schema: 1 is not valid under any of the given schemas. Correct"),
    "neither prompt nor messages": ({"name": "x"}, ":2: a prompt has either prompt (one user message) or messages (a conversation). Correct"),
    "both prompt and messages": ({"name": "x", "prompt": "a", "messages": [{"role": "user", "content": "b"}]}, ":2: a prompt has either prompt"),
    "nobody to answer": ({"name": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ":2: messages ends with the turn of the assistant, and nobody is left to answer: end it with the user's. Correct"),
    "two system messages": ({"name": "x", "system": "a", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}, ":2: a conversation has one system message at most, and begins with it."),
    "an unknown role": ({"name": "x", "messages": [{"role": "tool", "content": "a"}]}, ":2: messages.0.role: Input should be 'system', 'user' or 'assistant'."),
    "a name that is taken by a line": (LINE, f":2: the name hours is taken already, at {SOURCE}:1. Give every prompt its own name."),
    "a name that is taken in the gate": (INLINE, ":2: the name address is taken already, at evaluation.prompts. Give every prompt its own name."),
}  # fmt: skip


@pytest.mark.parametrize(("line", "words"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_line_is_named_with_cause_and_cure(file: Path, store: Store, tmp_path: Path, line: Any, words: str) -> None:
    file.write_text(lines(LINE, line, "{behind the fault"))
    with pytest.raises(StepError) as caught:
        load(store, tmp_path / "scratch", {"prompts": [INLINE], "promptsFrom": {"source": SOURCE}})
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, Reason.DATA_INVALID)
    assert caught.value.message.startswith(f"{SOURCE}{words}")


FILES: dict[str, tuple[bytes, Reason, str]] = {
    "an empty file": (b"\n \n", Reason.DATASET_EMPTY, f"{SOURCE} has no prompts. Each line is"),
    "a compressed file": (b"\x1f\x8b\x08\x00", Reason.DATA_INVALID, f"{SOURCE}:1: not UTF-8 at byte 2. Save the file as UTF-8, unpacked."),
    "a JSON list": (b'[{"name": "a",\n "prompt": "b"}]', Reason.DATA_INVALID, f"{SOURCE}:1: not JSON:"),
    "a list on one line": (b'[{"name": "a", "prompt": "b"}]', Reason.DATA_INVALID, f"{SOURCE}:1: the line: Input should be a valid dictionary"),
    "thousands of brackets": (b"[" * 100_000, Reason.DATA_INVALID, f"{SOURCE}:1: not JSON: maximum recursion depth"),
}


@pytest.mark.parametrize(("content", "reason", "words"), FILES.values(), ids=FILES)
def test_a_file_that_holds_no_prompts(file: Path, store: Store, tmp_path: Path, content: bytes, reason: Reason, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(StepError) as caught:
        load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE}})
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, reason)
    assert caught.value.message.startswith(words)


def test_too_many_prompts_are_refused_with_the_way_to_take_fewer(file: Path, store: Store, tmp_path: Path) -> None:
    file.write_text(lines(*({**LINE, "name": f"n{number}"} for number in range(prompts.MAX_PROMPTS + 1))))
    with pytest.raises(StepError, match=r"has more than 2,000 prompts. Take so many of them with promptsFrom.samples."):
        load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE}})
    assert len(load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE, "samples": prompts.MAX_PROMPTS}})[0]) == prompts.MAX_PROMPTS


def test_a_file_of_something_else_is_not_read_into_memory(file: Path, store: Store, tmp_path: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(prompts.MAX_BYTES + 1)
    with pytest.raises(StepError, match="has 64 MiB, more than the 64 MiB that prompts may have"):
        load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE}})


def test_a_missing_source_is_not_found(file: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        load(store, tmp_path / "scratch", {"promptsFrom": {"source": SOURCE}})
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND)


INLINE_FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a broken regular expression": ([{**INLINE, "expect": {"regex": "("}}], "evaluation.prompts[address]: expect.regex is not a regular expression"),
    "two of a name": ([INLINE, INLINE], "evaluation.prompts: two prompts have the same name."),
    "nothing to ask": ([{"name": "address"}], "evaluation.prompts[address]: a prompt has either prompt"),
}


@pytest.mark.parametrize(("inline", "words"), INLINE_FAULTS.values(), ids=INLINE_FAULTS)
def test_a_fault_in_the_gate_itself_is_the_configurations(store: Store, tmp_path: Path, inline: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(StepError) as caught:
        load(store, tmp_path / "scratch", {"prompts": inline})
    assert (caught.value.code, caught.value.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
    assert caught.value.message.startswith(words)
