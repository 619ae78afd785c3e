"""One file to one object: read once, in parts that travel side by side, hashed on the way."""

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# A file has at most PARALLEL_PARTS + 1 parts in memory. Larger parts are no faster and cost the training pod memory.
PART_BYTES = 16 * 2**20
PARALLEL_PARTS = 4
_MAX_PARTS = 10_000  # S3's limit


@dataclass(frozen=True)
class Sent:
    """Of the very bytes that the server has acknowledged: `size` in bytes, `sha256` in hexadecimal."""

    size: int
    sha256: str


def send(client: "S3Client", path: Path, bucket: str, key: str) -> Sent:
    """Uploads the file. A failed upload leaves no parts behind. Raises botocore's errors.

    The server verifies each request against its signature, over plain http too; the digest of the whole file is made from the
    same bytes, so nothing that changes between two readings can get between them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size > PART_BYTES:
            return _send_parts(client, file, max(PART_BYTES, math.ceil(size / _MAX_PARTS)), bucket, key)
        data = file.read()
    # A file, not bytes: botocore then asks first (Expect: 100-continue), so a refused upload costs nothing.
    client.put_object(Bucket=bucket, Key=key, Body=BytesIO(data))
    return Sent(len(data), hashlib.sha256(data).hexdigest())


def _send_parts(client: "S3Client", file: BinaryIO, part_bytes: int, bucket: str, key: str) -> Sent:
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

    def send_part(number: int, data: bytes) -> "CompletedPartTypeDef":
        answer = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=BytesIO(data))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    size, whole = 0, hashlib.sha256()
    done: list[CompletedPartTypeDef] = []
    under_way: deque[Future[CompletedPartTypeDef]] = deque()
    try:
        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:  # its end waits for the parts under way: one that came after the abort would stay
            for number, data in enumerate(_parts(file, part_bytes), 1):
                under_way.append(pool.submit(send_part, number, data))
                whole.update(data)
                size += len(data)
                if len(under_way) == PARALLEL_PARTS:
                    done.append(under_way.popleft().result())
            done.extend(part.result() for part in under_way)
        client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": done})
    except BaseException:
        with suppress(BotoCoreError, ClientError):  # the first error is the news; the next pod drops what stays
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        raise
    return Sent(size, whole.hexdigest())


def _parts(file: BinaryIO, part_bytes: int) -> Iterator[bytes]:
    while data := file.read(part_bytes):
        yield data
