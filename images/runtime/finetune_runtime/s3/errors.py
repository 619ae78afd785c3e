"""botocore's errors as StepErrors. The texts never repeat what a server says about keys or signatures."""

from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as botocore

from finetune_runtime.contract.result import Exit, Reason, StepError

_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.TokenRetrievalError,
)
# 404 XAdminUserNotFound is versitygw's answer to an unknown access key.
_DENIED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "XAdminUserNotFound", "ExpiredToken", "InvalidToken", "AccountProblem"}
)
_MISSING_KEY = frozenset({"NoSuchKey", "404", "NotFound"})


class ObjectNotFound(StepError):  # noqa: N818  a name like botocore's own NoSuchKey; most callers expect it
    """The bucket has no such object. Callers turn it into the reason that fits what they were looking for."""

    def __init__(self, uri: str) -> None:
        super().__init__(Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, f"{uri} does not exist")


def storage_error(reason: Reason, message: str) -> StepError:
    """A StepError with the exit code that makes the operator try again later."""
    return StepError(Exit.STORAGE_UNAVAILABLE, reason, message)


def status_of(error: Exception) -> int:
    """HTTP status of a server's answer, 0 for anything else."""
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0)) if isinstance(error, botocore.ClientError) else 0


def translate(error: Exception, uri: str, endpoint: str) -> StepError:
    """The StepError for what boto3 raised while it worked on `uri`."""
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        error = error.__context__  # boto3 flattens the server's answer into a text; the answer itself is its context
    if isinstance(error, _CREDENTIALS):
        return storage_error(
            Reason.ACCESS_DENIED,
            f"No S3 credentials for {uri}: set storage.s3.secretRef to a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give the pod's service account an identity of the cloud.",
        )
    if isinstance(error, botocore.ClientError):
        return _answer(error, uri, endpoint)
    # TLS failures, refused and reset connections, time-outs: the class name tells them apart, the text may hold a signed URL.
    return storage_error(
        Reason.STORAGE_UNAVAILABLE,
        f"The S3 endpoint {endpoint} cannot be reached ({type(error).__name__}) for {uri}: check storage.s3.endpoint, its certificate, "
        "name resolution and the network policies between the pod and the endpoint.",
    )


def _answer(error: botocore.ClientError, uri: str, endpoint: str) -> StepError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = status_of(error)
    if code == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").split("/", 1)[0]
        return storage_error(Reason.BUCKET_NOT_FOUND, f"Bucket {bucket} does not exist at {endpoint}: create it or correct the s3:// URI.")
    if code in _DENIED_CODES or status in (401, 403):
        return storage_error(
            Reason.ACCESS_DENIED,
            f"The S3 endpoint {endpoint} refused access to {uri} ({code or status}): check the keys in the Secret named by "
            "storage.s3.secretRef and the bucket's policy (GetObject, PutObject, DeleteObject, ListBucket).",
        )
    if code in _MISSING_KEY:
        return ObjectNotFound(uri)
    return storage_error(
        Reason.STORAGE_UNAVAILABLE, f"The S3 endpoint {endpoint} answered {status} {code} to {error.operation_name} for {uri}: see the server's log."
    )
