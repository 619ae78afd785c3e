"""Valid rows go to a file, invalid ones are counted, numbers stay in memory."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune_runtime.labels import IGNORED
from finetune_runtime.prepare.collect import KEPT_COLUMNS, KEPT_EXAMPLES, KEPT_OF_EACH, Collected, Source, collect
from finetune_runtime.prepare.encode import Encoded
from finetune_runtime.prepare.faults import Fault, RowError
from finetune_runtime.prepare.report import histogram, percentile
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


def source(tmp_path: Path, lines: list[str], samples: int | None = None, name: str = "in.jsonl") -> Source:
    (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return Source(f"pvc://data/{name}", [SourceFile(f"pvc://data/{name}", tmp_path / name)], samples)


def gather(tmp_path: Path, lines: list[str], system: str = "") -> tuple[Collected, Sample]:
    sample = Sample(seed=42)
    return collect([source(tmp_path, lines)], bytes_as_tokens, tmp_path / "out.jsonl", system=system, sample=sample), sample


def questions(found: Collected) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in found.path.read_text(encoding="utf-8").splitlines()]


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
    rows = source(tmp_path, [row(f"{number} " + "x" * 1900, "y") for number in range(5000)], samples=4900)
    tracemalloc.start()
    found = collect([rows], bytes_as_tokens, tmp_path / "out.jsonl", sample=Sample(seed=42))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.path.stat().st_size > 9_000_000
    assert peak < 4_000_000  # three pieces of a file, of 1 MiB each, and 17 bytes a row


def test_only_the_first_invalid_rows_are_kept(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, ["{broken"] * 250)
    assert (found.invalid, len(found.first_invalid)) == (250, KEPT_EXAMPLES)


def test_names_of_unused_columns_do_not_pile_up(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, [json.dumps({"query": "a", "response": f"{number}", f"column{number}": 1}) for number in range(KEPT_COLUMNS + 100)])
    assert (found.valid, len(found.unused_columns)) == (KEPT_COLUMNS + 100, KEPT_COLUMNS)


def test_a_kind_of_invalid_row_is_shown_even_where_another_comes_first(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, ["{broken"] * 250 + [row("a", "")] * 10)
    assert [error.row for error in found.first_invalid[KEPT_EXAMPLES:]] == [251, 252, 253][:KEPT_OF_EACH]


def test_samples_are_drawn_from_each_source_in_the_order_of_its_valid_rows(tmp_path: Path) -> None:
    def draw(seed: int, first_samples: int | None = 5) -> Collected:
        first = source(
            tmp_path, [row(f"a{number}" + "é" * number, "x" * (number + 1)) if number % 2 else "{broken" for number in range(40)], first_samples, "a"
        )
        second = source(tmp_path, [row(f"b{number}", "<think>hm</think>x") for number in range(3)], 7, "b")
        third = source(tmp_path, [row(f"c{number}", "y") for number in range(30)], 1, "c")
        return collect([first, second, third], bytes_as_tokens, tmp_path / "out.jsonl", sample=Sample(seed=42), seed=seed)

    found = draw(seed=1)
    drawn = questions(found)
    numbers = [int(question.strip("aé")) for question in drawn[:5]]
    assert all(question.startswith("a") for question in drawn[:5])
    assert numbers == sorted(set(numbers)), "in the order of the file, none twice"
    assert all(number % 2 for number in numbers)
    assert drawn[5:8] == ["b0", "b1", "b2"], "fewer rows than asked for: all"
    assert len(drawn) == found.valid == 9
    assert drawn[8].startswith("c")
    assert found.trainable.tolist()[:5] == [number + 1 for number in numbers], "numbers stay with their rows"
    assert [(counts.read, counts.valid, counts.invalid, counts.sampled_out) for counts in found.sources] == [(40, 5, 20, 15), (3, 3, 0, 0), (30, 1, 0, 29)]
    assert found.reasoning == 3
    assert questions(draw(seed=1)) == drawn
    assert questions(draw(seed=2)) != drawn
    assert len(questions(draw(seed=1, first_samples=None))) == 24


def test_training_row_that_is_a_validation_row_is_invalid_whatever_its_shape(tmp_path: Path) -> None:
    validation, _ = gather(tmp_path, [row("a", "b"), row("c", "d"), row("c", "d")], system="S.")
    as_messages = json.dumps({"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]})
    train = collect(
        [source(tmp_path, [row("a", "x"), as_messages, row("e", "f"), row("a", "b")])],
        bytes_as_tokens,
        tmp_path / "train.jsonl",
        system="S.",
        sample=Sample(seed=42),
        validation=validation.digests,
    )
    cause = "the row is also a validation row, and would make the evaluation loss look better than it is"
    assert [str(error) for error in train.first_invalid] == [f"pvc://data/in.jsonl:2: {cause}", f"pvc://data/in.jsonl:4: {cause}"]
    assert train.faults == {Fault.LEAK: 2}
    assert train.valid == 2


def test_formats_and_encodings_of_a_source_are_counted_by_file(tmp_path: Path) -> None:
    files = {"a.jsonl": row("a", "b").encode(), "b.csv": "query,response\n请问几点开门,九点\n".encode("gb18030"), "c.csv": b"query,response\na,b,c\nd,e\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = Source("pvc://data", [SourceFile(f"pvc://data/{name}", tmp_path / name) for name in files])
    found = collect([rows], bytes_as_tokens, tmp_path / "out.jsonl", sample=Sample(seed=42))
    assert found.sources[0].formats == {"JSON Lines": 1, "CSV": 2}
    assert found.sources[0].encodings == {"UTF-8": 2, "GB18030": 1}
    assert questions(found) == ["a", "请问几点开门", "d"]
    assert [(error.source, error.row, error.fault) for error in found.first_invalid] == [("pvc://data/c.csv", 1, Fault.UNREADABLE)]


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


def ascending(values: list[int]) -> NDArray[np.uint32]:
    return np.array(sorted(values), dtype=np.uint32)


@pytest.mark.parametrize(("values", "share", "expected"), [([], 50, 0), ([7], 50, 7), ([1, 2, 3, 4], 50, 2), ([1, 2, 3, 4], 99, 4), ([1, 2, 3, 4], 100, 4)])
def test_percentile_is_a_value_of_the_data(values: list[int], share: int, expected: int) -> None:
    assert percentile(ascending(values), share) == expected


@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([50, 90, 95, 99, 100]))
def test_percentile_has_its_share_of_values_at_or_below_it(values: list[int], share: int) -> None:
    found = percentile(ascending(values), share)
    assert 100 * sum(value <= found for value in values) >= share * len(values)
    assert 100 * sum(value < found for value in values) < share * len(values)


def test_histogram_ends_at_the_longest_row() -> None:
    assert histogram(ascending([])) == [{"upTo": 16, "rows": 0}]
    assert [(bucket["upTo"], bucket["rows"]) for bucket in histogram(ascending([1, 16, 17, 24, 25, 100]))] == [
        (16, 2),
        (24, 2),
        (32, 1),
        (48, 0),
        (64, 0),
        (96, 0),
        (128, 1),
    ]


@given(st.lists(st.integers(0, 200_000)))
def test_every_row_is_in_the_one_bucket_of_its_length(values: list[int]) -> None:
    buckets = histogram(ascending(values))
    lower = -1
    for bucket in buckets:
        assert bucket["rows"] == sum(lower < value <= bucket["upTo"] for value in values)
        lower = bucket["upTo"]
    assert sum(bucket["rows"] for bucket in buckets) == len(values)
