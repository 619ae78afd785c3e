"""Valid rows go to a file, invalid ones are counted, numbers stay in memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.prepare.collect import KEPT_EXAMPLES, Collected, collect
from finetune_runtime.prepare.encode import IGNORED, Encoded
from finetune_runtime.prepare.faults import Fault, RowError
from finetune_runtime.prepare.report import percentile
from finetune_runtime.prepare.rows import Message
from finetune_runtime.prepare.sample import PER_KIND, Example, Sample, as_request
from finetune_runtime.sources.dataset import SourceFile


def bytes_as_tokens(messages: list[Message]) -> Encoded:
    """A template without markers and a tokenizer of bytes: the last answer is what is learned."""
    *before, answer = ([*message["content"].encode()] for message in messages)
    prompt = [token for ids in before for token in ids]
    if len(prompt) + len(answer) > 2000:
        raise RowError(Fault.LENGTH, "too many bytes")
    return Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)


def source(tmp_path: Path, lines: list[str]) -> SourceFile:
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return SourceFile("pvc://data/in.jsonl", tmp_path / "in.jsonl")


def gather(tmp_path: Path, lines: list[str], system: str = "") -> tuple[Collected, Sample]:
    sample = Sample(seed=42)
    return collect([source(tmp_path, lines)], bytes_as_tokens, tmp_path / "out.jsonl", system=system, sample=sample), sample


def row(question: str, answer: str) -> str:
    return json.dumps({"query": question, "response": answer})


def test_rows_are_written_normalised_and_measured(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, [row("ab", "cde"), "broken", row("é", "f"), row("x" * 3000, "y"), row("ab", "cde")])
    assert [json.loads(line)["messages"][0]["content"] for line in found.path.read_text(encoding="utf-8").splitlines()] == ["ab", "é", "ab"]
    assert (found.files, found.read, found.valid, found.invalid) == (1, 5, 3, 2)
    assert (list(found.tokens), list(found.trainable)) == ([5, 3, 5], [3, 1, 3])
    assert found.digests[0] == found.digests[2] != found.digests[1]
    assert found.faults == {Fault.NOT_JSON: 1, Fault.LENGTH: 1}
    assert [str(row) for row in found.first_invalid] == [
        "pvc://data/in.jsonl:2: not valid JSON: Expecting value at column 1",
        "pvc://data/in.jsonl:4: too many bytes",
    ]


def test_system_prompt_is_filled_in_and_counted(tmp_path: Path) -> None:
    own = json.dumps({"system": "Own.", "query": "a", "response": "b"})
    found, sample = gather(tmp_path, [row("a", "b"), own], system="Job.")
    assert [json.loads(line)["messages"][0]["content"] for line in found.path.read_text().splitlines()] == ["Job.", "Own."]
    assert list(found.tokens) == [6, 6]
    assert [[message["role"] for message in example.request] for example in sample.examples] == [["system", "user"], ["user"]]


def test_memory_does_not_grow_with_the_text_of_the_rows(tmp_path: Path) -> None:
    file = source(tmp_path, [row(f"{number} " + "x" * 1900, "y") for number in range(5000)])
    tracemalloc.start()
    found = collect([file], bytes_as_tokens, tmp_path / "out.jsonl", system="", sample=Sample(seed=42))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.path.stat().st_size > 9_000_000
    assert peak < 1_000_000


def test_only_the_first_invalid_rows_are_kept(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, ["{broken"] * 250)
    assert (found.invalid, len(found.first_invalid)) == (250, KEPT_EXAMPLES)


def test_sample_has_rows_of_every_kind_and_is_reproducible() -> None:
    def draw() -> list[Example]:
        sample = Sample(seed=7)
        for number in range(1000):
            turns: list[Message] = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]
            messages = turns * (1 + number % 2)
            sample.add(Example(messages, as_request(messages, system_filled_in=False)))
        return sample.examples

    first = draw()
    assert first == draw()
    assert [len(example.messages) for example in first] == [2] * PER_KIND + [4] * PER_KIND
    assert max(int(example.messages[0]["content"][1:]) for example in first) > 500, "not only the first rows"


@pytest.mark.parametrize(("answer", "reasons"), [("<think>\nhm\n</think>\nx", True), ("<think>\n\n</think>\n\nx", False), ("x", False), (" <think>", False)])
def test_answer_that_reasons_is_told_from_one_with_an_empty_block(answer: str, reasons: bool) -> None:
    assert Example([{"role": "assistant", "content": answer}], []).reasons is reasons


@pytest.mark.parametrize(("values", "share", "expected"), [([], 0.5, 0), ([7], 0.5, 7), ([1, 2, 3, 4], 0.5, 2), ([1, 2, 3, 4], 0.99, 4), ([1, 2, 3, 4], 1, 4)])
def test_percentile_is_a_value_of_the_data(values: list[int], share: float, expected: int) -> None:
    assert percentile(values, share) == expected


@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([0.5, 0.9, 0.95, 0.99, 1]))
def test_percentile_has_its_share_of_values_at_or_below_it(values: list[int], share: float) -> None:
    found = percentile(sorted(values), share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)
