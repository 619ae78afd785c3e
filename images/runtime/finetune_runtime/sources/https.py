"""https:// datasets: a streamed download from a public server, with a limit on its size, and every redirect checked like the first URL."""

import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import gaierror
from typing import IO
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse, HTTPSConnectionPool, Timeout
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NewConnectionError, ProtocolError, ReadTimeoutError, SSLError
from urllib3.util import parse_url

from finetune_runtime.contract.result import Exit, Reason, StepError

from .addresses import Network, allowed_networks, resolve
from .room import check_size, room

log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
TIMEOUT = Timeout(connect=10, read=60)  # seconds: to connect, and between two pieces of an answer
_TRIES = 4  # of a download that breaks off; each goes on where the last one stopped if the server can do that
_CHUNK = 2**20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 416, 425, 429})  # client errors by number, yet another try may succeed


@dataclass(frozen=True)
class _Target:
    """Where one request goes. `authority`: host and port as the server knows itself; `request`: path and query."""

    host: str
    port: int
    authority: str
    request: str


def shown(url: str) -> str:
    """The URL without its query, which may hold a signature."""
    return url.partition("#")[0].partition("?")[0]


def download(url: str, path: Path) -> None:
    """Copies the file to `path`, whose directory exists. Neither proxies nor credentials are taken from the environment.

    Raises StepError: InvalidConfig for a URL or a redirect that leads where no source may be, DatasetNotFound when the server does not give us
    the file, DataInvalid when it is too large, StorageUnavailable (try again later) when the server cannot be reached.
    """
    limit, allowed, tls = room(path.parent), allowed_networks(), ssl.create_default_context()  # which heeds SSL_CERT_FILE
    etag = ""
    with path.open("wb") as file, _unavailable(url):
        for attempt in range(1, _TRIES + 1):
            headers = {"Range": f"bytes={file.tell()}-", "If-Range": etag} if etag and file.tell() else {}
            try:
                with _follow(url, headers, allowed, tls) as answer:
                    etag = answer.headers.get("ETag", "")
                    etag = "" if etag.startswith("W/") else etag  # a weak one does not promise the same bytes
                    _copy(url, answer, file, limit)
            except (ProtocolError, ReadTimeoutError) as error:
                if attempt == _TRIES:
                    raise
                log.warning("%s broke off after %d bytes (%s); trying again", shown(url), file.tell(), type(error).__name__)
            else:
                return


def _copy(url: str, answer: BaseHTTPResponse, file: IO[bytes], limit: int) -> None:
    """Writes the answer to the file: behind what is there when it is the rest of it, else from the start."""
    if answer.status != 206:
        file.seek(0)
        file.truncate()
    elif not re.fullmatch(rf"bytes {file.tell()}-\d+/\d+", content_range := answer.headers.get("Content-Range", "")):
        raise ProtocolError(f"asked for the bytes from {file.tell()} on, got {content_range!r}")
    announced = answer.headers.get("Content-Length", "")
    check_size(shown(url), file.tell() + (int(announced) if announced.isdecimal() else 0), limit)
    for chunk in answer.stream(_CHUNK, decode_content=False):  # what is compressed is told by its content, later
        check_size(shown(url), file.tell() + len(chunk), limit)
        file.write(chunk)


@contextmanager
def _follow(url: str, headers: Mapping[str, str], allowed: list[Network], tls: ssl.SSLContext) -> Iterator[BaseHTTPResponse]:
    """The answer with the file, behind any redirects."""
    current = url
    for _ in range(1 + MAX_REDIRECTS):
        with _request(_check(current, url), headers, allowed, tls) as answer:
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                _judge(shown(url), answer.status)
                yield answer
                return
            try:
                current = urljoin(current, location)
            except ValueError as error:
                raise _invalid(f"{shown(url)} redirects to what is not a URL: name the URL at the end.") from error
    raise _invalid(f"{shown(url)} redirects more than {MAX_REDIRECTS} times: name the URL at the end.")


def _check(current: str, url: str) -> _Target:
    """What to ask for; `current` is the URL itself or what it redirected to. Raises StepError InvalidConfig."""
    what = shown(url) if current == url else f"{shown(url)} redirects to {shown(current)}, which"
    try:
        parts = parse_url(current)
    except LocationParseError as error:
        raise _invalid(f"{what} is not a URL: write https://HOST/PATH.") from error
    if parts.auth is not None:
        raise _invalid("An https:// source has a user name or password in its URL, for all to read who see the job: use a signed URL, or S3.")
    if parts.scheme != "https" or not parts.host:
        raise _invalid(f"{what} is not https://HOST/PATH: other protocols do not protect the data on its way.")
    authority = parts.host if parts.port in (None, 443) else f"{parts.host}:{parts.port}"
    return _Target(parts.host.strip("[]"), parts.port or 443, authority, parts.request_uri)


def _request(target: _Target, headers: Mapping[str, str], allowed: list[Network], tls: ssl.SSLContext) -> BaseHTTPResponse:
    """The answer of the first of the host's addresses that can be connected to."""
    failure = HTTPError(f"{target.host} has no address")
    fields = {"Host": target.authority, "Accept-Encoding": "identity", "User-Agent": "finetune-operator", **headers}
    for address in resolve(target.host, target.port, allowed):
        # The pool is named by the very address that was checked: the name is not looked up again, with another result.
        pool = HTTPSConnectionPool(str(address), target.port, server_hostname=target.host, ssl_context=tls, timeout=TIMEOUT)
        try:
            return pool.urlopen("GET", target.request, headers=fields, retries=False, redirect=False, preload_content=False)
        except (NewConnectionError, ConnectTimeoutError) as error:
            failure = error
        except SSLError as error:
            if not isinstance(cause := error.args[0], ssl.SSLCertVerificationError):
                raise
            raise _invalid(f"The certificate of {target.host} is not trusted: {cause.verify_message}. Use a server with a certificate for its name.") from error
    raise failure


def _judge(name: str, status: int) -> None:
    """Raises StepError for an answer without the file."""
    if status in (200, 206):
        return
    if status >= 500 or status in _LATER:
        raise StepError(Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, f"The server answered {status} for {name}; it is asked again later.")
    cause = "open the URL to see why"
    if status in (401, 403):
        cause = "access is refused; use a signed URL that is still valid, or copy the data to S3 or a volume"
    elif status in (404, 410):
        cause = "there is no such file; check the URL"
    raise StepError(Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND, f"{name} cannot be read ({status}): {cause}.")


@contextmanager
def _unavailable(url: str) -> Iterator[None]:
    """Turns what may be over later into a StepError that says so."""
    try:
        yield
    except (HTTPError, gaierror) as error:
        raise StepError(
            Exit.STORAGE_UNAVAILABLE,
            Reason.STORAGE_UNAVAILABLE,
            f"{shown(url)} cannot be read ({type(error).__name__}): check the host's name, and whether the cluster's network policies let pods out to it.",
        ) from error


def _invalid(message: str) -> StepError:
    return StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, message)
