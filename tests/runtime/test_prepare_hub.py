"""hf:// models and datasets, read from a hub on the loopback interface that speaks the part of the protocol that huggingface_hub uses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.s3.store import Store
from finetune_runtime.sources import hub_dataset
from finetune_runtime.sources.dataset import SourceFile, fetch_dataset
from finetune_runtime.sources.model import fetch_model, list_model, obtain_model
from tests.runtime.support import free_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"weights", "README.md": b"# tiny", "pytorch_model.bin": b"pickle"}
ROWS = b'{"query": "a", "response": "b"}\n'
DATA = {"README.md": b"# rows", "data/train[1].jsonl": ROWS, "data/test.csv.gz": b"gzip", "dataset_infos.json": b"{}", "notes.txt": b"text"}
TOKEN = "hub-token-of-the-test"


def blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324  git's choice, guards nothing here


@dataclass
class Hub:
    """A model owner/tiny and a dataset owner/rows, which can be gated. `downloads`: files whose content was sent, `ranges`: what was asked of them.

    `tells_digests`: in its listing. `takes_ranges`: else it sends whole files. `breaks_at`: byte of the weights behind which it hangs up, to fail from then on.
    """

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    data: dict[str, bytes] = field(default_factory=lambda: dict(DATA))
    gated: bool = False
    failing: bool = False
    tells_digests: bool = True
    takes_ranges: bool = True
    breaks_at: int | None = None
    downloads: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        if self.failing:
            return 503, {}, b""
        repository, files = ("models/owner/tiny", self.files) if "owner/tiny" in path else ("datasets/owner/rows", self.data)
        if repository.removeprefix("models/") not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if self.gated and token != f"Bearer {TOKEN}":
            return 401, {"X-Error-Code": "GatedRepo"}, b"{}"
        if path.startswith(f"/api/{repository}"):
            kind, _, revision = path.removeprefix(f"/api/{repository}").strip("/").partition("/")
            if revision.strip("/") not in ("", "main", "refs/pr/1", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            if kind == "tree":
                tree = [{"type": "file", "path": name, "size": len(content), "oid": blob(content)} for name, content in files.items()]
                return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
            siblings = [
                {"rfilename": name, "size": len(content), **(self.digests(name, content) if self.tells_digests else {})} for name, content in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": "owner/x", "sha": COMMIT, "siblings": siblings}).encode()
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{blob(files[name])}"'}, files[name]

    def digests(self, name: str, content: bytes) -> dict[str, Any]:
        """As the hub tells them: large files are in Git LFS, where the blob is a pointer to them."""
        if not name.endswith(".safetensors"):
            return {"blobId": blob(content)}
        return {"blobId": blob(b"pointer"), "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 7}}

    def part(self, status: int, headers: dict[str, str], body: bytes, span: str) -> tuple[int, bytes]:
        """Status and body of the answer to a request for a range."""
        self.ranges.append(span)
        if not self.takes_ranges:
            return status, body
        start = int(span.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return 206, body[start:]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            status, headers, body = hub.answer(path, self.headers.get("Authorization", ""))
            weights = self.command == "GET" and path.endswith(".safetensors") and status == 200
            if weights and (span := self.headers.get("Range")):
                status, body = hub.part(status, headers, body, span)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if weights and hub.breaks_at is not None:
                self.wfile.write(body[: hub.breaks_at])
                self.close_connection = hub.failing = True
            elif self.command == "GET":
                if "/resolve/" in path and status in (200, 206):
                    hub.downloads.append(path.rpartition("/")[2])  # before the client can go on
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as in the pods
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    yield hub
    server.shutdown()
    server.server_close()


def point(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What a pod gets by HF_ENDPOINT, which huggingface_hub reads when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"source": "hf://owner/tiny", **changes})


def test_repository_is_listed_with_sizes_and_its_commit(hub: Hub, store: Store) -> None:
    listing = list_model(spec(), store)
    assert listing.revision == COMMIT
    assert {file.path: file.size for file in listing.files} == {name: len(content) for name, content in FILES.items()}
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("metadata_only", "expected"),
    [(True, ["config.json", "tokenizer.json"]), (False, ["config.json", "model.safetensors", "tokenizer.json"])],
)
def test_only_needed_files_are_downloaded_and_only_once(hub: Hub, store: Store, tmp_path: Path, metadata_only: bool, expected: list[str]) -> None:
    for _ in range(2):
        directory = fetch_model(spec(), store, tmp_path / "model", metadata_only=metadata_only)
    assert sorted(path.name for path in directory.iterdir() if path.is_file()) == expected
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == {name: FILES[name] for name in expected}
    assert sorted(hub.downloads) == expected


def test_weights_are_added_to_the_small_files(hub: Hub, store: Store, tmp_path: Path) -> None:
    fetch_model(spec(), store, tmp_path / "model", metadata_only=True)
    fetch_model(spec(), store, tmp_path / "model")
    assert sorted(hub.downloads) == ["config.json", "model.safetensors", "tokenizer.json"]


PIECE = 10 * 2**20  # what the hub's client writes at once
LARGE = bytes(range(256)) * (3 * PIECE // 256)


@pytest.fixture
def half_way(hub: Hub, store: Store, tmp_path: Path) -> Hub:
    """The hub has hung up after a part of the weights."""
    hub.files["model.safetensors"] = LARGE
    hub.breaks_at = 2 * PIECE + 1000
    with pytest.raises(StepError, match="cannot be read") as caught:
        fetch_model(spec(), store, tmp_path / "model")
    assert caught.value.code is Exit.STORAGE_UNAVAILABLE
    hub.breaks_at, hub.failing = None, False
    return hub


def test_interrupted_download_goes_on_where_it_stopped(half_way: Hub, store: Store, tmp_path: Path) -> None:
    found = obtain_model(spec(), store, tmp_path / "model")
    assert (found.directory / "model.safetensors").read_bytes() == LARGE
    assert half_way.ranges == [f"bytes={2 * PIECE}-"]
    assert found.figures is not None
    assert (found.figures.resumed, found.figures.fetched) == (2 * PIECE, PIECE)


def test_hub_without_ranges_sends_the_whole_file(half_way: Hub, store: Store, tmp_path: Path) -> None:
    half_way.takes_ranges = False
    found = obtain_model(spec(), store, tmp_path / "model")
    assert (found.directory / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize("tells_digests", [True, False], ids=["the hub tells digests", "a hub that does not"])
def test_damaged_files_of_a_cache_are_fetched_again_and_others_are_not(hub: Hub, store: Store, tmp_path: Path, tells_digests: bool) -> None:
    hub.tells_digests = tells_digests
    directory = obtain_model(spec(), store, tmp_path / "unused", cache=tmp_path / "cache").directory
    assert directory.parent == tmp_path / "cache"
    assert not (tmp_path / "unused").exists()
    (directory / "model.safetensors").write_bytes(b"weightz")
    (directory / "config.json").write_bytes(b"[]")
    hub.downloads.clear()
    found = obtain_model(spec(), store, tmp_path / "unused", cache=tmp_path / "cache")
    assert found.directory == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]


def test_model_that_is_in_the_cache_whole_needs_no_hub(hub: Hub, store: Store, tmp_path: Path) -> None:
    first = obtain_model(spec(), store, tmp_path, cache=tmp_path / "cache")
    hub.failing = True
    again = obtain_model(spec(revision=COMMIT), store, tmp_path, cache=tmp_path / "cache")
    assert (again.directory, again.figures and again.figures.fetched) == (first.directory, 0)
    (again.directory / "config.json").unlink()
    with pytest.raises(StepError, match="cannot be read"):
        obtain_model(spec(revision=COMMIT), store, tmp_path, cache=tmp_path / "cache")
    with pytest.raises(StepError, match="cannot be read"):  # what a branch stands for is the hub's to say
        obtain_model(spec(), store, tmp_path, cache=tmp_path / "cache")


def test_offline_mode_is_back_after_the_call(hub: Hub, store: Store) -> None:
    import os

    from huggingface_hub import constants

    list_model(spec(), store)
    assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("1", True)


def test_gated_repository_asks_for_a_token(hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(StepError) as caught:
        list_model(spec(), store)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND)
    assert "hf://owner/tiny is gated: accept its licence on the hub and set spec.model.secretRef" in caught.value.message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch_model(spec(), store, tmp_path / "model") / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "hf://owner/none"}, "hf://owner/none does not exist at http://127.0.0.1:"),
        ({"revision": "v9"}, "hf://owner/tiny has no revision 'v9': set spec.model.revision"),
    ],
)
def test_wrong_name_is_the_users_fault(hub: Hub, store: Store, changes: dict[str, str], message: str) -> None:
    with pytest.raises(StepError) as caught:
        list_model(spec(**changes), store)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND)
    assert message in caught.value.message


def test_hub_that_fails_is_tried_again_later(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.failing = True
    for call in (lambda: list_model(spec(), store), lambda: fetch_model(spec(), store, tmp_path / "model")):
        with pytest.raises(StepError, match="cannot be read") as caught:
            call()
        assert (caught.value.code, caught.value.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)


def test_hub_that_is_not_there_is_tried_again_later(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    point(monkeypatch, endpoint := f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StepError, match=f"The hub {endpoint} cannot be read") as caught:
        list_model(spec(), store)
    assert caught.value.code is Exit.STORAGE_UNAVAILABLE
    assert "copy the model to S3 or a volume" in caught.value.message


SELECTED = [
    pytest.param("hf://datasets/owner/rows", ["data/test.csv.gz", "data/train[1].jsonl", "notes.txt"], id="all data of a repository"),
    pytest.param("hf://datasets/owner/rows/data@refs/pr/1", ["data/test.csv.gz", "data/train[1].jsonl"], id="a folder at a revision"),
    pytest.param("hf://datasets/owner/rows/data/train[1].jsonl@main", ["data/train[1].jsonl"], id="a file at a branch"),
]


@pytest.mark.parametrize(("source", "expected"), SELECTED)
def test_data_files_are_downloaded_at_one_commit_which_is_reported(hub: Hub, store: Store, tmp_path: Path, source: str, expected: list[str]) -> None:
    found = fetch_dataset(source, store, tmp_path / "scratch")
    assert found == [SourceFile(f"hf://datasets/owner/rows/{name}", tmp_path / "scratch" / name, COMMIT) for name in expected]
    assert [file.path.read_bytes() for file in found] == [DATA[name] for name in expected]
    assert sorted(hub.downloads) == sorted(name.rpartition("/")[2] for name in expected)


def test_files_outside_the_directory_are_not_taken(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.data |= {"/tmp/outside.jsonl": ROWS, "../outside.jsonl": ROWS, "data/../../outside.jsonl": ROWS}
    assert len(fetch_dataset("hf://datasets/owner/rows", store, tmp_path / "scratch")) == 3
    with pytest.raises(StepError, match="has no data files"):
        fetch_dataset("hf://datasets/owner/rows/../outside.jsonl", store, tmp_path / "scratch")


def test_repository_that_is_too_large_is_not_downloaded(hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_dataset, "room", lambda _: len(ROWS))
    with pytest.raises(StepError, match="hf://datasets/owner/rows has more than") as caught:
        fetch_dataset("hf://datasets/owner/rows", store, tmp_path / "scratch")
    assert caught.value.reason == Reason.DATA_INVALID
    assert hub.downloads == []


MISSING = [
    pytest.param("owner/none", "hf://datasets/owner/none does not exist at http://127.0.0.1:", id="no such repository"),
    pytest.param("owner/rows@v9", "has no revision 'v9': end the source with @ and a branch, tag or commit of it.", id="no such revision"),
    pytest.param("owner/rows/none", "has no data files (.csv .json .jsonl .parquet .tsv .txt, each also with .gz) at or below none:", id="no such folder"),
    pytest.param("own..er/rows", "is not a repository that the hub gives out: check the name", id="a name that no hub takes"),
]


@pytest.mark.parametrize(("source", "message"), MISSING)
def test_dataset_that_is_not_there_is_the_users_fault(hub: Hub, store: Store, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        fetch_dataset(f"hf://datasets/{source}", store, tmp_path)
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND)
    assert message in caught.value.message


def test_gated_dataset_asks_for_a_token(hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(StepError, match=r"hf://datasets/owner/rows is gated: accept its licence on the hub and set spec\.model\.secretRef") as caught:
        fetch_dataset("hf://datasets/owner/rows", store, tmp_path)
    assert caught.value.code is Exit.DATA_INVALID
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(fetch_dataset("hf://datasets/owner/rows", store, tmp_path)) == 3


def test_dataset_of_a_hub_that_fails_is_tried_again_later(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.failing = True
    with pytest.raises(StepError, match=r"cannot be read .* copy the dataset to S3 or a volume") as caught:
        fetch_dataset("hf://datasets/owner/rows", store, tmp_path)
    assert (caught.value.code, caught.value.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
