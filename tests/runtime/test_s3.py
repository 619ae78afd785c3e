"""The S3 client against a real server: what it does, and what its errors say."""

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import ObjectNotFound, Store
from tests.runtime.support import Server, free_port


def test_an_object_is_written_read_listed_and_deleted(store: Store, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"payload")
    store.upload(source, f"s3://{bucket}/dir/a.bin")
    store.put(f"s3://{bucket}/dir/b.bin", b"small")

    assert store.read(f"s3://{bucket}/dir/a.bin") == b"payload"
    assert [(item.key, item.size) for item in store.list(f"s3://{bucket}/dir/")] == [("dir/a.bin", 7), ("dir/b.bin", 5)]

    store.download(f"s3://{bucket}/dir/a.bin", tmp_path / "new/dir/copy.bin")
    assert (tmp_path / "new/dir/copy.bin").read_bytes() == b"payload"

    store.delete([f"s3://{bucket}/dir/a.bin", f"s3://{bucket}/dir/never-there"])
    assert not store.exists(f"s3://{bucket}/dir/a.bin")
    assert store.exists(f"s3://{bucket}/dir/b.bin")
    assert not store.exists(f"s3://{bucket}/dir/b")  # a prefix of a name is not the name


@pytest.mark.parametrize(("start", "length", "expected"), [(0, 3, b"pay"), (3, 100, b"load"), (6, 1, b"d")])
def test_a_part_of_an_object_is_read(store: Store, bucket: str, start: int, length: int, expected: bytes) -> None:
    store.put(f"s3://{bucket}/a.bin", b"payload")
    assert store.read_range(f"s3://{bucket}/a.bin", start, length) == expected
    with pytest.raises(ObjectNotFound):
        store.read_range(f"s3://{bucket}/none.bin", start, length)


def test_a_file_of_several_parts_arrives_whole(store: Store, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    content = os.urandom(2**20) * 150
    source.write_bytes(content)
    sent = store.upload(source, f"s3://{bucket}/large.bin")
    assert (sent.size, sent.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    store.download(f"s3://{bucket}/large.bin", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == content


def test_put_new_writes_once_and_never_overwrites(store: Store, bucket: str) -> None:
    assert store.put_new(f"s3://{bucket}/manifest.json", b"first")
    assert not store.put_new(f"s3://{bucket}/manifest.json", b"second")
    assert store.read(f"s3://{bucket}/manifest.json") == b"first"


def test_unfinished_multipart_uploads_of_a_killed_pod_are_dropped_below_the_prefix_only(store: Store, s3_server: Server, bucket: str) -> None:
    client = s3_server.client()
    for key in ("mine/a.bin", "mine/b.bin", "theirs/a.bin"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert store.abort_uploads(f"s3://{bucket}/mine/") == 2
    assert [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["theirs/a.bin"]


def test_a_failed_upload_leaves_no_parts(store: Store, s3_server: Server, bucket: str, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(2**20) * 150)
    # An object stands where the key needs a directory: the server takes the parts and then cannot complete the upload.
    store.put(f"s3://{bucket}/file", b"x")
    with pytest.raises(StepError):
        store.upload(large, f"s3://{bucket}/file/below.bin")
    assert not s3_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_check_writable_leaves_nothing_behind(store: Store, bucket: str) -> None:
    store.check_writable(f"s3://{bucket}/models")
    assert list(store.list(f"s3://{bucket}/")) == []


def _error(storage: S3Storage, bucket: str) -> StepError:
    with pytest.raises(StepError) as caught:
        Store(storage).check_writable(f"s3://{bucket}/models")
    return caught.value


@pytest.mark.parametrize(
    ("keys", "case"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "a wrong secret"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "an unknown access key"),
        ({"AWS_ACCESS_KEY_ID": ""}, "a Secret without the access key"),
    ],
)
def test_refused_credentials_are_access_denied_and_never_shown(
    storage: S3Storage, bucket: str, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], case: str
) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    error = _error(storage, bucket)
    assert (error.code, error.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.ACCESS_DENIED), case
    assert "secretRef" in error.message
    for secret in ("wrong-secret", "only-for-tests", "nobody", "tester"):
        assert secret not in error.message


@pytest.mark.parametrize("operation", ["read", "exists", "download", "list"])
def test_refused_credentials_never_look_like_a_missing_object(
    storage: S3Storage, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, operation: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    store = Store(storage)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: store.read(f"s3://{bucket}/a"),
        "exists": lambda: store.exists(f"s3://{bucket}/a"),
        "download": lambda: store.download(f"s3://{bucket}/a", tmp_path / "a"),
        "list": lambda: list(store.list(f"s3://{bucket}/a")),
    }
    with pytest.raises(StepError) as caught:
        calls[operation]()
    assert caught.value.reason == Reason.ACCESS_DENIED


@pytest.mark.parametrize("operation", ["read", "download"])
def test_a_missing_object_is_named(store: Store, bucket: str, tmp_path: Path, operation: str) -> None:
    with pytest.raises(ObjectNotFound) as caught:
        if operation == "read":
            store.read(f"s3://{bucket}/none.json")
        else:
            store.download(f"s3://{bucket}/none.json", tmp_path / "none.json")
    assert f"s3://{bucket}/none.json" in caught.value.message
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize("operation", ["write", "read", "exists", "download", "list"])
def test_a_missing_bucket_is_named(store: Store, tmp_path: Path, operation: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: store.put("s3://no-such-bucket/a", b""),
        "read": lambda: store.read("s3://no-such-bucket/a"),
        "exists": lambda: store.exists("s3://no-such-bucket/a"),
        "download": lambda: store.download("s3://no-such-bucket/a", tmp_path / "a"),
        "list": lambda: list(store.list("s3://no-such-bucket/a")),
    }
    with pytest.raises(StepError) as caught:
        calls[operation]()
    assert (caught.value.code, caught.value.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.BUCKET_NOT_FOUND)
    assert "no-such-bucket" in caught.value.message


def test_an_unreachable_endpoint_is_named(storage: S3Storage, bucket: str) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    error = _error(storage.model_copy(update={"endpoint": endpoint}), bucket)
    assert (error.code, error.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert endpoint in error.message


def test_an_endpoint_that_speaks_no_tls_is_named(storage: S3Storage, s3_server: Server, bucket: str) -> None:
    error = _error(storage.model_copy(update={"endpoint": s3_server.endpoint.replace("http:", "https:")}), bucket)
    assert error.reason == Reason.STORAGE_UNAVAILABLE
    assert "certificate" in error.message


def test_an_endpoint_that_never_answers_is_given_up(storage: S3Storage, bucket: str) -> None:
    with socket.socket() as full:  # a backlog of one connection that nobody accepts: further connections hang
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            error = _error(storage.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"}), bucket)
        finally:
            for filler in fillers:
                filler.close()
    assert error.reason == Reason.STORAGE_UNAVAILABLE
