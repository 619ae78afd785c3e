"""What dataset sources of the network say, taken apart without a network."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.sources import hub_dataset
from finetune_runtime.sources.https import _check, shown
from finetune_runtime.sources.room import MAX_BYTES, check_size, room

PARSED = [
    ("hf://datasets/owner/name", "owner/name", "", ""),
    ("hf://datasets/owner/name/", "owner/name", "", ""),
    ("hf://datasets/owner/name@v1.0", "owner/name", "v1.0", ""),
    ("hf://datasets/owner/name/data/a.jsonl", "owner/name", "", "data/a.jsonl"),
    ("hf://datasets/owner/name/data/@refs/pr/1", "owner/name", "refs/pr/1", "data"),
]


@pytest.mark.parametrize(("source", "name", "revision", "path"), PARSED)
def test_hub_source_is_repository_path_and_revision(source: str, name: str, revision: str, path: str) -> None:
    found = hub_dataset.parse(source)
    assert (found.repository.name, found.repository.revision, found.path) == (name, revision, path)
    assert (found.repository.kind, found.repository.source) == ("dataset", source)


@pytest.mark.parametrize("source", ["hf://datasets/", "hf://datasets/squad", "hf://datasets//name", "hf://datasets/owner/@main"])
def test_hub_source_without_a_repository_is_refused(source: str) -> None:
    with pytest.raises(StepError, match="names no repository: write hf://datasets/OWNER/NAME") as caught:
        hub_dataset.parse(source)
    assert caught.value.code is Exit.INVALID_CONFIG


FILES = [
    ".gitattributes", "README.md", "LICENSE.txt", "requirements.txt", "dataset_infos.json", "loader.py", "train.jsonl", "data/a.parquet", "data/b.csv.gz",
    "data/.cache/c.json", "data/_SUCCESS", "data/sub/d.tsv", "data.json", "picture.png", "state.json", "data/e.json.zst", "notes.txt",
]  # fmt: skip
SELECTED = [
    pytest.param("", ["data.json", "data/a.parquet", "data/b.csv.gz", "data/sub/d.tsv", "notes.txt", "train.jsonl"], id="all data of a repository"),
    pytest.param("data", ["data/a.parquet", "data/b.csv.gz", "data/sub/d.tsv"], id="a folder, and not the file that begins like it"),
    pytest.param("data/sub", ["data/sub/d.tsv"], id="a folder in a folder"),
    pytest.param("train.jsonl", ["train.jsonl"], id="a file"),
    pytest.param("README.md", ["README.md"], id="a file that is named is taken whatever it is called"),
    pytest.param("dat", [], id="the beginning of a name is no name"),
]


@pytest.mark.parametrize(("path", "expected"), SELECTED)
def test_path_selects_a_file_or_the_data_below_a_folder(path: str, expected: list[str]) -> None:
    assert hub_dataset.select(FILES, path) == expected


TARGETS = [
    ("https://example.com/a.jsonl", ("example.com", 443, "example.com", "/a.jsonl")),
    ("https://EXAMPLE.com:443/a?b=c%2Fd#e", ("example.com", 443, "example.com", "/a?b=c%2Fd")),
    ("https://example.com:8443/a@1/b c", ("example.com", 8443, "example.com:8443", "/a@1/b%20c")),
    ("https://[2606:4700::1]/a", ("2606:4700::1", 443, "[2606:4700::1]", "/a")),
]


@pytest.mark.parametrize(("url", "expected"), TARGETS)
def test_url_is_taken_apart_by_the_rules_of_the_client_that_connects(url: str, expected: tuple[str, int, str, str]) -> None:
    found = _check(url, url)
    assert (found.host, found.port, found.authority, found.request) == expected


URLS = [
    pytest.param("http://example.com/a", "http://example.com/a, which is not https://HOST/PATH", id="no protection"),
    pytest.param("file:///etc/passwd", "file:///etc/passwd, which is not https://HOST/PATH", id="a file of the pod"),
    pytest.param("https:///a", "https:///a, which is not", id="no host"),
    pytest.param("https://me:secret@example.com/a", "user name or password in its URL", id="a password"),
    pytest.param("https://me@example.com/a", "user name or password in its URL", id="a user name"),
    pytest.param("https://example.com:99999/a", "https://example.com:99999/a, which is not a URL", id="a port too high"),
    pytest.param("https://[::1/a", "is not a URL", id="half an address"),
]


@pytest.mark.parametrize(("url", "message"), URLS)
def test_url_that_no_source_may_have_is_refused_as_a_source_and_as_a_redirect(url: str, message: str) -> None:
    for source, expected in (("https://example.com/start", message), (url, message.replace(", which is", " is"))):
        with pytest.raises(StepError) as caught:
            _check(url, source)
        assert (caught.value.code, caught.value.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
        assert expected in caught.value.message
        assert "secret" not in caught.value.message


@given(st.text(max_size=80).map("https://{}".format) | st.text(max_size=80))
def test_any_text_is_a_target_or_a_refusal(url: str) -> None:
    try:
        found = _check(url, url)
    except StepError:
        return
    assert found.host
    assert 0 <= found.port <= 65535
    assert found.request.isascii()
    assert not set(found.request) & set(" \r\n\0")


def test_query_of_a_url_is_not_shown_because_it_may_be_a_signature() -> None:
    assert shown("https://example.com/a.jsonl?X-Amz-Signature=abc#d") == "https://example.com/a.jsonl"


def test_a_source_has_a_limit_that_its_message_names(tmp_path: Path) -> None:
    assert 0 < room(tmp_path) <= MAX_BYTES == 16 * 2**30
    check_size("https://example.com/a", 2**30, 2**30)
    with pytest.raises(StepError, match=r"https://example.com/a has more than 1\.0 GiB, which is what the scratch volume") as caught:
        check_size("https://example.com/a", 2**30 + 1, 2**30)
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, Reason.DATA_INVALID)
