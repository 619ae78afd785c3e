"""The prepare step from sources to committed dataset, with a real tokenizer, ms-swift's templates and a real S3 server."""

import gzip
import hashlib
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.prepare import run
from finetune_runtime.s3.store import Store
from tests.runtime.preparing import committed, refusal_of, rows, summary_of
from tests.runtime.support import MakeConfig, Server

pytestmark = pytest.mark.usefixtures("scratch")

CLINIC = Path(__file__).parents[2] / "examples/clinic"
SYSTEM = "You answer for the Harbour View Clinic.\nBe brief."


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def conversation(*turns: str, system: str = "") -> dict[str, Any]:
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": head + [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]}


def test_clinic_becomes_a_committed_dataset(data: Path, store: Store, job_config: MakeConfig) -> None:
    config = job_config()
    summary = summary_of(config)
    assert (summary.train_rows, summary.validation_rows, summary.invalid_rows, summary.warnings) == (142, 7, 0, [])
    given = [json.loads(line) for line in (CLINIC / "support.jsonl").read_text().splitlines()]
    train, validation = rows(store, config, "train.jsonl"), rows(store, config, "val.jsonl")
    assert sorted(map(str, train + validation)) == sorted(map(str, given))
    assert [row for row in given if row in train] == train, "rows keep their order"
    both = committed(store, config, "train.jsonl") + committed(store, config, "val.jsonl")
    assert summary.sha256 == hashlib.sha256(both).hexdigest()
    manifest = artefacts.load(store, f"{config.prefix}/dataset")
    assert manifest
    assert (manifest.kind, manifest.config_hash, manifest.dataset_sha256) == (Kind.DATASET, config.config_hash(), summary.sha256)
    assert [file.path for file in manifest.files] == ["chat_template.jinja", "parity.json", "report.json", "train.jsonl", "val.jsonl"]
    assert {key: manifest.details[key] for key in ("modelType", "template", "trainRows", "validationRows")} == {
        "modelType": "qwen3",
        "template": "qwen3",
        "trainRows": 142,
        "validationRows": 7,
    }


def test_report_counts_what_training_will_see(data: Path, store: Store, job_config: MakeConfig) -> None:
    config = job_config()
    summary = summary_of(config)
    report = json.loads(committed(store, config, "report.json"))
    tokens = report["tokens"]
    assert tokens["total"] == summary.tokens > 142 * 20
    assert tokens["percentiles"]["100"] == summary.longest
    assert tokens["percentiles"]["50"] <= tokens["percentiles"]["99"]
    assert 0.3 < tokens["trainableShare"] < 0.8
    assert tokens["tooLongShare"] == 0
    assert sum(bucket["rows"] for bucket in tokens["histogram"]) == 142
    assert tokens["histogram"][-2]["upTo"] < summary.longest <= tokens["histogram"][-1]["upTo"]
    counts = {"files": 1, "read": 149, "valid": 149, "invalid": 0, "sampledOut": 0, "causes": {}}
    source = {"source": "pvc://data/train.jsonl", "samples": None, "format": "JSON Lines", "encoding": "UTF-8", **counts}
    assert report["rows"] == {"train": {**counts, "sources": [source]}, "validation": None}
    assert (report["duplicates"], report["leaks"]) == (0, 0)
    assert report["chatTemplate"]["origin"] == "ms-swift"
    assert report["chatTemplate"]["checked"] > 20
    assert report["model"] == {"source": "pvc://models/tiny-qwen3", "revision": "", "type": "qwen3", "template": "qwen3"}


def test_second_run_returns_the_first_result_at_once_without_sources(data: Path, job_config: MakeConfig) -> None:
    config = job_config()
    first = run(config)
    shutil.rmtree(data)
    started = time.monotonic()
    assert run(config) == first
    assert time.monotonic() - started < 10


def test_dataset_of_another_configuration_is_not_taken_for_ours(data: Path, job_config: MakeConfig) -> None:
    run(job_config())
    refused = refusal_of(job_config(training={"seed": 7}))
    assert (refused.code, refused.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
    assert "was prepared for another configuration of this job" in refused.message


def test_same_data_and_seed_give_the_same_bytes_for_every_job(data: Path, job_config: MakeConfig) -> None:
    first = summary_of(job_config())
    second = summary_of(job_config(job={"uid": "0b7c6c1e-0000-4000-8000-000000000002"}))
    other = summary_of(job_config(job={"uid": "0b7c6c1e-0000-4000-8000-000000000003"}, training={"seed": 7}))
    assert first == second
    assert first.sha256 != other.sha256


BAD_FILES = {
    "broken-json.jsonl": "1 of 10 rows cannot be trained on: pvc://data/train.jsonl:4: not valid JSON: ",
    "empty-response.jsonl": "1 of 11 rows cannot be trained on: pvc://data/train.jsonl:7: message 2 (assistant) is empty.",
    "unknown-role.jsonl": '1 of 6 rows cannot be trained on: pvc://data/train.jsonl:3: message 2 has the role "receptionist"; accepted:',
    "unknown-columns.jsonl": "5 of 5 rows cannot be trained on: pvc://data/train.jsonl:1: no question in the columns bar, foo; accepted shapes: messages",
    "empty.jsonl": "pvc://data/train.jsonl has 0 bytes.",
}


@pytest.mark.parametrize("file", BAD_FILES)
def test_bad_file_is_rejected_by_row_and_cause(data: Path, store: Store, job_config: MakeConfig, file: str) -> None:
    shutil.copy(CLINIC / "bad" / file, data / "train.jsonl")
    config = job_config()
    refused = refusal_of(config)
    assert refused.code is Exit.DATA_INVALID
    assert refused.reason is (Reason.DATASET_EMPTY if file == "empty.jsonl" else Reason.DATA_INVALID)
    assert refused.message.startswith(BAD_FILES[file])
    assert not list(store.list(config.prefix)), "nothing is left in the bucket"


def test_only_the_first_five_invalid_rows_are_named(data: Path, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [conversation("a", "b")] + [conversation("a", "")] * 40)
    message = refusal_of(job_config()).message
    assert message.startswith(
        "40 of 41 rows cannot be trained on: pvc://data/train.jsonl:2: message 2 (assistant) is empty; pvc://data/train.jsonl:3: the same; "
    )
    assert [f"train.jsonl:{row}: " in message for row in range(1, 9)] == [False, True, True, True, True, True, False, False]
    assert message.endswith("Correct them, or leave them out with dataset.invalidRows.policy: Drop.")


@pytest.mark.parametrize(("limit", "accepted"), [(0, True), (3, True), (2, False)])
def test_invalid_rows_are_dropped_up_to_a_limit(data: Path, store: Store, job_config: MakeConfig, limit: int, accepted: bool) -> None:
    good = [conversation(f"Question {number}?", "Yes.") for number in range(20)]
    write_rows(data / "train.jsonl", [*good, conversation("a", ""), {"foo": 1}, conversation("a")])
    config = job_config(dataset={"invalidRows": {"policy": "Drop", "max": limit}})
    if not accepted:
        assert "3 of 23 rows cannot be trained on, dataset.invalidRows.max allows 2: " in refusal_of(config).message
        return
    summary = summary_of(config)
    assert (summary.train_rows + summary.validation_rows, summary.invalid_rows) == (20, 3)
    assert summary.warnings == [
        "3 invalid rows were left out; report.json lists the first 3",
        "only 19 training rows: fewer than 100 rarely teach more than their wording",
    ]
    report = json.loads(committed(store, config, "report.json"))
    assert report["rows"]["train"]["causes"] == {"EmptyContent": 1, "UnknownColumns": 1, "RoleOrder": 1}
    assert [(row["row"], row["fault"]) for row in report["invalid"]] == [(21, "EmptyContent"), (22, "UnknownColumns"), (23, "RoleOrder")]


def test_nothing_left_after_dropping_is_an_empty_dataset(data: Path, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [{"foo": 1}] * 3)
    refused = refusal_of(job_config(dataset={"invalidRows": {"policy": "Drop"}}))
    assert (refused.code, refused.reason) == (Exit.DATA_INVALID, Reason.DATASET_EMPTY)
    assert "(3 of 3 are invalid)" in refused.message


def test_row_over_max_length_is_invalid_with_its_length(data: Path, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [conversation("a", "b"), conversation("a", "word " * 400)])
    assert "train.jsonl:2: 8" in (message := refusal_of(job_config()).message)
    assert " tokens, training.maxLength allows 256" in message
    # The tiny model has 4096 positions: more cannot be trained, whatever the job asks for.
    write_rows(data / "train.jsonl", [conversation("a", "b"), conversation("a", "word " * 4000)])
    assert " tokens, the model's context length allows 4096" in refusal_of(job_config(training={"maxLength": 100_000})).message


def test_default_system_prompt_is_given_to_rows_and_to_served_requests(data: Path, store: Store, tiny_model: Path, job_config: MakeConfig) -> None:
    kinds = [(conversation(f"a{row}", "b"), conversation("c", "d", f"e{row}", "f"), conversation(f"g{row}", "h", system="Own.")) for row in range(40)]
    write_rows(data / "train.jsonl", [conversation for kind in kinds for conversation in kind])
    config = job_config(dataset={"system": SYSTEM})
    summary_of(config)
    found = {row["messages"][0]["content"] for row in rows(store, config, "train.jsonl")}
    assert found == {SYSTEM, "Own."}
    template = committed(store, config, "chat_template.jinja").decode()
    assert rendered(tiny_model, template, "a") == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert rendered(tiny_model, template, "a", system="Own.").startswith("<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\na")


def rendered(model: Path, template: str, question: str, system: str = "") -> str:
    from transformers import AutoTokenizer

    messages = conversation(question, system=system)["messages"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True))


@pytest.fixture
def leaking(data: Path) -> list[str]:
    """val.jsonl has the clinic's first five rows; train.jsonl the others, the last two of the five, and one row twice."""
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "val.jsonl").write_text("".join(lines[:5]))
    (data / "train.jsonl").write_text("".join([*lines[3:], lines[-1]]))
    return lines


LEAKING = {"sources": [{"source": "pvc://data/val.jsonl"}]}


def test_explicit_validation_is_taken_as_it_is_and_training_rows_in_it_are_left_out(leaking: list[str], store: Store, job_config: MakeConfig) -> None:
    config = job_config(dataset={"validation": LEAKING, "invalidRows": {"policy": "Drop"}})
    summary = summary_of(config)
    assert (summary.train_rows, summary.validation_rows, summary.invalid_rows) == (145, 5, 2)
    assert rows(store, config, "val.jsonl") == [json.loads(line) for line in leaking[:5]]
    assert rows(store, config, "train.jsonl") == [json.loads(line) for line in [*leaking[5:], leaking[-1]]]
    assert summary.warnings == [
        "2 invalid rows were left out; report.json lists the first 2",
        "1 rows are exact copies of others: they weigh more in training",
    ]
    report = json.loads(committed(store, config, "report.json"))
    assert (report["leaks"], report["duplicates"], report["rows"]["train"]["causes"]) == (2, 1, {"LeaksIntoValidation": 2})


def test_training_rows_in_the_validation_data_are_refused_by_row(leaking: list[str], job_config: MakeConfig) -> None:
    assert refusal_of(job_config(dataset={"validation": LEAKING})).message.startswith(
        "2 of 152 rows cannot be trained on: pvc://data/train.jsonl:1: the row is also a validation row, and would make the evaluation loss look better than "
        "it is; pvc://data/train.jsonl:2: the same. "
    )


def test_copies_of_a_row_are_on_one_side_of_the_split(data: Path, store: Store, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [conversation(f"Question {number % 20}?", "Yes.") for number in range(200)])
    config = job_config(dataset={"validation": {"splitRatio": "0.1"}})
    summary = summary_of(config)
    assert (summary.train_rows, summary.validation_rows) == (180, 20)
    train, validation = ({str(row) for row in rows(store, config, name)} for name in ("train.jsonl", "val.jsonl"))
    assert (len(train), len(validation)) == (18, 2)
    assert not train & validation
    assert summary.warnings == ["180 rows are exact copies of others: they weigh more in training"]


def test_sample_counts_of_sources(data: Path, store: Store, job_config: MakeConfig) -> None:
    write_rows(data / "few.jsonl", [conversation(f"Few {number}?", "Yes.") for number in range(3)])
    sources = [{"source": "pvc://data/train.jsonl", "samples": 110}, {"source": "pvc://data/few.jsonl", "samples": 5}]
    config = job_config(dataset={"train": sources, "validation": {"splitRatio": "0.1"}})
    summary = summary_of(config)
    assert (summary.train_rows, summary.validation_rows) == (102, 11)
    assert summary.warnings == ["pvc://data/few.jsonl has 3 rows that can be trained on, fewer than the 5 samples that were asked for: all are taken"]
    found = json.loads(committed(store, config, "report.json"))["rows"]["train"]["sources"]
    assert [(source["samples"], source["read"], source["valid"], source["sampledOut"]) for source in found] == [(110, 149, 110, 39), (5, 3, 3, 0)]
    again = job_config(job={"uid": "0b7c6c1e-0000-4000-8000-000000000002"}, dataset={"train": sources, "validation": {"splitRatio": "0.1"}})
    assert summary_of(again).sha256 == summary.sha256


TABLE = [{"query": f"Question {number}?", "response": "九点开门。" if number % 2 else "007"} for number in range(4)]
CSV_TEXT = "query,response\n" + "".join(f"{row['query']},{row['response']}\n" for row in TABLE)
CHATML_TEXT = "\n".join(f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n{row['response']}<|im_end|>\n" for row in TABLE)
JSON_TEXT = json.dumps(TABLE, ensure_ascii=False)


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([conversation(row["query"], row["response"]) for row in TABLE]), file)
    return file.getvalue()


FILES: dict[str, tuple[bytes, str, str]] = {
    "list.json": (JSON_TEXT.encode(), "JSON list", "UTF-8"),
    "list.json.gz": (gzip.compress(JSON_TEXT.encode()), "JSON list in gzip", "UTF-8"),
    "windows.json": (JSON_TEXT.encode("utf-16"), "JSON list", "UTF-16"),
    "chinese.json": (JSON_TEXT.encode("gb18030"), "JSON list", "GB18030"),
    "table.csv": (CSV_TEXT.encode("utf-8-sig"), "CSV", "UTF-8 with BOM"),
    "table.tsv": (CSV_TEXT.replace(",", "\t").encode(), "TSV", "UTF-8"),
    "table.csv.gz": (gzip.compress(CSV_TEXT.encode("gb18030")), "CSV in gzip", "GB18030"),
    "rows.parquet": (parquet_bytes(), "Parquet", ""),
    "rows.parquet.gz": (gzip.compress(parquet_bytes()), "Parquet in gzip", ""),
    "chats.txt": (CHATML_TEXT.encode(), "ChatML text", "UTF-8"),
}


def test_files_of_every_format_and_encoding_give_the_same_rows(data: Path, store: Store, job_config: MakeConfig) -> None:
    for name, (content, _, _) in FILES.items():
        (data / name).write_bytes(content)
    config = job_config(dataset={"train": [{"source": f"pvc://data/{name}"} for name in FILES], "validation": {"splitRatio": "0"}})
    summary = summary_of(config)
    assert rows(store, config, "train.jsonl") == [conversation(row["query"], row["response"]) for row in TABLE] * len(FILES)
    found = json.loads(committed(store, config, "report.json"))["rows"]["train"]["sources"]
    assert [(source["format"], source["encoding"]) for source in found] == [(layout, encoding) for _, layout, encoding in FILES.values()]
    named = [warning.partition(":")[2].partition(":")[0] for warning in summary.warnings if "GB18030" in warning]
    assert named == ["//data/chinese.json", "//data/table.csv.gz"]


def test_ratio_zero_means_no_evaluation_and_says_so(data: Path, store: Store, job_config: MakeConfig) -> None:
    config = job_config(dataset={"validation": {"splitRatio": "0"}})
    summary = summary_of(config)
    assert (summary.train_rows, summary.validation_rows) == (149, 0)
    assert committed(store, config, "val.jsonl") == b""
    assert summary.warnings == ["no validation rows: there will be no evaluation loss (validation.splitRatio is 0)"]


def test_rows_that_gpus_cannot_share_are_said_before_one_is_taken(data: Path, store: Store, job_config: MakeConfig) -> None:
    summary = summary_of(job_config(gpus=4))
    assert (summary.train_rows, summary.warnings) == (142, ["2 of 142 training rows are left out: each of 4 GPUs gets as many rows as the others"])
    write_rows(data / "train.jsonl", [conversation(f"Question {number}?", "Yes.") for number in range(3)])
    few = job_config(job={"uid": "0b7c6c1e-0000-4000-8000-000000000002"}, gpus=4, dataset={"validation": {"splitRatio": "0"}})
    assert "3 training rows are fewer than the 4 GPUs" in refusal_of(few).message


def test_one_row_cannot_be_split(data: Path, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [conversation("a", "b")])
    assert 'set dataset.validation.splitRatio to "0"' in refusal_of(job_config()).message
    assert summary_of(job_config(dataset={"validation": {"splitRatio": "0"}})).train_rows == 1


def test_sources_of_every_kind_and_shape_are_joined_in_their_order(
    data: Path, sources: Path, bucket: str, s3_server: Server, store: Store, job_config: MakeConfig
) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="data/one.json", Body=b'\xef\xbb\xbf[{"instruction": "s3 object", "input": "", "output": "x", "id": 1}]')
    client.put_object(Bucket=bucket, Key="data/one.json.bak", Body=b"not read")
    client.put_object(Bucket=bucket, Key="data/many/b.jsonl", Body=b'{"query": "s3 prefix b", "response": "x"}\n')
    client.put_object(Bucket=bucket, Key="data/many/a/c.jsonl", Body=b'{"query": "s3 prefix a", "response": "x"}\n')
    client.put_object(Bucket=bucket, Key="data/many/_SUCCESS", Body=b"")
    (sources / "configmap/rows").mkdir(parents=True)
    (sources / "configmap/rows/rows.jsonl").write_text('{"conversations": [{"from": "human", "value": "configmap"}, {"from": "gpt", "value": "x"}]}\n')
    write_rows(data / "train.jsonl", [conversation("pvc", "x")])
    uris = [f"s3://{bucket}/data/one.json", "configmap://rows/rows.jsonl", f"s3://{bucket}/data/many", "pvc://data/train.jsonl"]
    config = job_config(dataset={"train": [{"source": uri} for uri in uris], "validation": {"splitRatio": "0"}})
    summary = summary_of(config)
    assert [row["messages"][0]["content"] for row in rows(store, config, "train.jsonl")] == ["s3 object", "configmap", "s3 prefix a", "s3 prefix b", "pvc"]
    assert "columns that nothing was taken from: id" in summary.warnings


@pytest.mark.parametrize("uri", ["s3://{bucket}/data/none.jsonl", "pvc://data/none.jsonl", "configmap://rows/none"])
def test_missing_dataset_is_named(data: Path, bucket: str, job_config: MakeConfig, uri: str) -> None:
    uri = uri.format(bucket=bucket)
    refused = refusal_of(job_config(dataset={"train": [{"source": uri}]}))
    assert (refused.code, refused.reason) == (Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND)
    assert refused.message.startswith(f"{uri} does not exist: ")


def test_unusable_storage_shows_before_anything_is_read(job_config: MakeConfig) -> None:
    config = job_config(storage={"uri": "s3://no-such-bucket/x"}, model={"source": "pvc://models/none"}, dataset={"train": [{"source": "pvc://data/none"}]})
    started = time.monotonic()
    refused = refusal_of(config)
    assert (refused.code, refused.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.BUCKET_NOT_FOUND)
    assert time.monotonic() - started < 20


def test_rows_that_reason_keep_their_prompt_apart_from_those_that_do_not(data: Path, store: Store, tiny_model: Path, job_config: MakeConfig) -> None:
    write_rows(data / "train.jsonl", [conversation(f"a{number}", "<think>\nhm\n</think>\n\nb") for number in range(60)] + [conversation("a", "b")] * 40)
    config = job_config()
    assert "60 of 100 rows open with <think>, the others do not; requests choose with the template option enable_thinking" in summary_of(config).warnings
    template = committed(store, config, "chat_template.jinja").decode()
    assert rendered(tiny_model, template, "a").endswith("<|im_start|>assistant\n"), "most rows reason, so requests do"
    manifest = artefacts.load(store, f"{config.prefix}/dataset")
    assert manifest
    assert manifest.details["reasons"] is True
    samples = json.loads(committed(store, config, "parity.json"))["samples"]
    assert sorted(({**sample["options"]} for sample in samples), key=len)[:: len(samples) - 1] == [{}, {"enable_thinking": False}]


def test_answers_are_trained_from_exactly_the_ids_that_were_counted(data: Path, store: Store, tiny_model: Path, tmp_path: Path, job_config: MakeConfig) -> None:
    from swift.pipelines import SwiftSft

    from finetune_runtime.prepare.encode import Encoder
    from finetune_runtime.prepare.identify import Identity

    config = job_config(dataset={"system": SYSTEM})
    run(config)
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_bytes(committed(store, config, name))
    arguments = {
        "model": tiny_model, "model_type": "qwen3", "template": "qwen3", "check_model": "false", "use_cpu": "true", "max_length": 256,
        "dataset": tmp_path / "train.jsonl", "val_dataset": tmp_path / "val.jsonl", "output_dir": tmp_path / "out", "load_from_cache_file": "false",
    }  # fmt: skip
    training = SwiftSft([text for key, value in arguments.items() for text in (f"--{key}", str(value))])
    encoder = Encoder("tiny", tiny_model, Identity("qwen3", "qwen3"), 256)
    for dataset, name in zip(training._prepare_dataset(), ("train.jsonl", "val.jsonl"), strict=True):
        ours = [encoder.encode(row["messages"]) for row in rows(store, config, name)]
        theirs = [dataset[number] for number in range(len(dataset))]
        # Compared without their order, which ms-swift shuffles.
        assert sorted((row.input_ids, row.labels) for row in ours) == sorted((row["input_ids"], row["labels"]) for row in theirs)
