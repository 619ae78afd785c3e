"""The few S3 operations that the steps need, on s3://BUCKET/KEY URIs. Thread-safe."""

import os
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import S3Storage

from .download import stream
from .errors import ObjectNotFound, status_of, storage_error, translate
from .upload import Sent, send

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["ObjectInfo", "ObjectNotFound", "Store", "split"]

_DOWNLOAD_PART_BYTES = 64 * 2**20
_DELETE_BATCH = 1000  # S3's limit for one DeleteObjects
_CONFLICT_TRIES = 3


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; `size` in bytes. `etag`: changes with the content, empty where the server gives none."""

    uri: str
    key: str
    size: int
    etag: str = ""


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI. The key is empty for a bare bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class Store:
    """A client of one S3 endpoint. Every method raises StepError (exit 40) when the storage cannot be used."""

    def __init__(self, storage: S3Storage) -> None:
        self.endpoint = storage.endpoint or "of AWS"
        self._client = _client(storage)
        self._transfer = TransferConfig(multipart_threshold=_DOWNLOAD_PART_BYTES, multipart_chunksize=_DOWNLOAD_PART_BYTES, max_concurrency=4)

    def read(self, uri: str) -> bytes:
        """The whole object. Raises ObjectNotFound."""
        bucket, key = split(uri)
        with self._errors(uri):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on, which must be inside the object; fewer where the object ends. Raises ObjectNotFound."""
        bucket, key = split(uri)
        with self._errors(uri):
            return self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")["Body"].read()

    def exists(self, uri: str) -> bool:
        """Whether there is an object of exactly this name."""
        bucket, key = split(uri)
        # Not HEAD: its answers have no body, so a missing bucket or an unknown access key would look like a missing object.
        with self._errors(uri):
            page = self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        return any(item["Key"] == key for item in page.get("Contents", []))

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with `prefix_uri`, in order of their names. End it with / to mean a directory."""
        bucket, prefix = split(prefix_uri)
        with self._errors(prefix_uri):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Key"], item["Size"], item.get("ETag", ""))

    def download(self, uri: str, path: Path) -> None:
        """Copies the object to `path`, which appears only when it is whole. Makes parent directories. Raises ObjectNotFound."""
        bucket, key = split(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._errors(uri):
                self._client.download_file(bucket, key, str(path), Config=self._transfer)
        except ObjectNotFound:
            self.exists(uri)  # the transfer begins with a HEAD (see exists): this names a missing bucket or key pair
            raise

    def stream(self, uri: str, *, start: int, size: int, etag: str) -> Generator[bytes, None, None]:
        """The bytes from `start` on of an object that the listing gave this size and ETag, in pieces. Raises ObjectNotFound."""
        bucket, key = split(uri)
        with self._errors(uri):
            yield from stream(self._client, bucket, key, start=start, size=size, etag=etag)

    def upload(self, path: Path, uri: str) -> Sent:
        """Copies the file to the object and tells what was sent. A failed upload leaves no parts behind."""
        bucket, key = split(uri)
        with self._errors(uri):
            return send(self._client, path, bucket, key)

    def put(self, uri: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Writes or overwrites a small object."""
        bucket, key = split(uri)
        with self._errors(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

    def put_new(self, uri: str, data: bytes) -> bool:
        """Writes the object if there is none. True: written. False: there was one, which is left as it was."""
        bucket, key = split(uri)
        with self._errors(uri):
            for attempt in range(1, _CONFLICT_TRIES + 1):
                try:
                    self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
                except ClientError as error:
                    if status_of(error) == 412:
                        return False
                    # 409: another conditional write was under way; who won shows at the next try.
                    if status_of(error) != 409 or attempt == _CONFLICT_TRIES:
                        raise
                else:
                    return True
        raise AssertionError("unreachable: the last try returns or raises")

    def delete(self, uris: Iterable[str]) -> None:
        """Deletes objects of one bucket; those that do not exist are fine."""
        pending = list(uris)
        for start in range(0, len(pending), _DELETE_BATCH):
            batch = pending[start : start + _DELETE_BATCH]
            bucket, _ = split(batch[0])
            with self._errors(batch[0]):
                answer = self._client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": split(uri)[1]} for uri in batch], "Quiet": True})
            for failed in answer.get("Errors", []):
                if failed.get("Code") != "NoSuchKey":
                    raise storage_error(
                        Reason.ACCESS_DENIED if failed.get("Code") == "AccessDenied" else Reason.STORAGE_UNAVAILABLE,
                        f"The S3 endpoint {self.endpoint} did not delete s3://{bucket}/{failed.get('Key')} ({failed.get('Code')}).",
                    )

    def abort_uploads(self, prefix_uri: str) -> int:
        """Drops unfinished multipart uploads below a prefix that only this process writes to; a killed predecessor leaves them. Returns how many."""
        bucket, prefix = split(prefix_uri)
        aborted = 0
        with self._errors(prefix_uri):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    self._client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    aborted += 1
        return aborted

    def check_writable(self, prefix_uri: str) -> None:
        """Proves that objects can be written, listed and deleted below the prefix."""
        probe = f"{prefix_uri.rstrip('/')}/.probe-{uuid.uuid4().hex}"
        self.put(probe, b"written by a preflight check; safe to delete\n")
        if not self.exists(probe):
            raise storage_error(Reason.STORAGE_UNAVAILABLE, f"The S3 endpoint {self.endpoint} accepted {probe} but does not list it.")
        self.delete([probe])

    @contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise translate(error, uri, self.endpoint) from error


def _client(storage: S3Storage) -> "S3Client":
    key_id = secret = None
    if storage.secret_ref:
        # With a Secret named, nothing else may stand in for it: the default chain would go on to the node's own identity.
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        if missing := [name for name in names if not os.environ.get(name)]:
            raise storage_error(Reason.ACCESS_DENIED, f"Secret {storage.secret_ref.name} (storage.s3.secretRef) has no key {' and no key '.join(missing)}.")
        key_id, secret = (os.environ[name] for name in names)
    try:
        return boto3.Session().client(
            "s3",
            endpoint_url=storage.endpoint or None,
            region_name=storage.region,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 4},
                # Not every S3 server knows the checksum trailers that botocore adds by default; payloads are signed with SHA-256 anyway.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=5,
                max_pool_connections=32,
            ),
        )
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"storage.s3.endpoint {storage.endpoint!r} is not usable: {error}") from error
