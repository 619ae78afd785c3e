"""One object as a stream: in parts that travel side by side and arrive in order, so that what is written of it is always its beginning."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from botocore.exceptions import ConnectionClosedError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

# At most PARALLEL_PARTS parts of an object are in memory.
PART_BYTES = 8 * 2**20
PARALLEL_PARTS = 4
_TRIES = 4
# botocore tries again to get an answer, but not to read the rest of one that breaks off.
_BROKEN_OFF = (ConnectionClosedError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


def stream(client: "S3Client", bucket: str, key: str, *, start: int, size: int, etag: str) -> Generator[bytes, None, None]:
    """The bytes from `start` on of an object of `size` bytes. Raises botocore's errors, with status 412 when the object is no longer that of `etag`."""

    def read(at: int) -> bytes:
        request: GetObjectRequestTypeDef = {"Bucket": bucket, "Key": key, "Range": f"bytes={at}-{min(at + PART_BYTES, size) - 1}"}
        if etag:
            request["IfMatch"] = etag
        for attempt in range(1, _TRIES + 1):
            try:
                return client.get_object(**request)["Body"].read()
            except _BROKEN_OFF:
                if attempt == _TRIES:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    under_way: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(PARALLEL_PARTS)
    try:
        for at in range(start, size, PART_BYTES):
            under_way.append(pool.submit(read, at))
            if len(under_way) == PARALLEL_PARTS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
