"""https:// data from a real TLS server on the loopback interface, which the tests allow as an administrator allows a mirror."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from urllib3 import Timeout

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.s3.store import Store
from finetune_runtime.sources import https
from finetune_runtime.sources.dataset import SourceFile, fetch_dataset
from tests.runtime.support import free_port
from tests.runtime.tls_server import Handler, TlsServer, reply, serve

ROWS = b'{"query": "a", "response": "b"}\n' * 100_000  # 3.2 MB: several pieces


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    with serve(tmp_path) as running:
        monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
        monkeypatch.setenv("FINETUNE_ALLOWED_CIDRS", "127.0.0.0/8,::1/128")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")  # nobody is there: whoever heeds it fails
        running.answers["/rows"] = reply(200, ROWS)
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def failure(url: str, path: Path) -> StepError:
    with pytest.raises(StepError) as caught:
        https.download(url, path)
    assert "signature" not in caught.value.message
    return caught.value


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A resolver that gives data.example.test another address at each question; returns the questions."""
    questions: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "data.example.test":
            return real(host, *arguments, **options)
        questions.append(host)
        return real(answers[len(questions) - 1], *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return questions


def test_file_is_streamed_to_the_scratch_volume_and_called_without_its_query(server: TlsServer, store: Store, tmp_path: Path) -> None:
    server.answers["/rows?signature=x"] = server.answers["/rows"]
    found = fetch_dataset(server.url("/rows?signature=x"), store, tmp_path / "scratch")
    assert found == [SourceFile(server.url("/rows"), tmp_path / "scratch/file")]
    assert found[0].path.read_bytes() == ROWS
    assert server.requests == [("/rows?signature=x", "", f"localhost:{server.port}")]
    assert server.names == ["localhost"]


def test_name_is_looked_up_once_and_the_checked_address_is_the_one_connected_to(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = resolver(monkeypatch, "127.0.0.1", "10.0.0.1")
    https.download(server.url("/rows", "data.example.test"), path)
    assert path.read_bytes() == ROWS
    assert questions == ["data.example.test"]
    assert (server.names, server.requests[0][2]) == (["data.example.test"], f"data.example.test:{server.port}")


def test_loopback_is_refused_where_nobody_allows_it_before_a_byte_is_sent(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_ALLOWED_CIDRS")
    error = failure(server.url("/rows"), path)
    assert (error.code, error.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
    assert "which is loopback; https:// sources are read from public addresses only" in error.message
    assert (server.names, server.requests) == ([], [])


def test_redirects_are_followed_up_to_five(server: TlsServer, path: Path) -> None:
    for number in range(6):
        server.answers[f"/{number}"] = reply(302, Location=f"/{number + 1}" if number % 2 else server.url(f"/{number + 1}"))
    server.answers["/6"] = reply(200, ROWS)
    https.download(server.url("/1"), path)
    assert path.read_bytes() == ROWS
    error = failure(server.url("/0"), path)
    assert error.code is Exit.INVALID_CONFIG
    assert error.message == f"{server.url('/0')} redirects more than 5 times: name the URL at the end."


REDIRECTS = [
    pytest.param("https://169.254.169.254/latest?signature=x", "169.254.169.254, which is link-local", id="the cloud's metadata service"),
    pytest.param("https://10.96.0.1/api", "10.96.0.1, which is private", id="a Service of the cluster"),
    pytest.param("//[fd00::1]/a", "fd00::1, which is private", id="an address of the cluster in IPv6"),
    pytest.param("http://localhost/a?signature=x", "redirects to http://localhost/a, which is not https://HOST/PATH", id="no protection"),
    pytest.param("file:///etc/passwd", "redirects to file:///etc/passwd, which is not", id="a file of the pod"),
    pytest.param("https://me:signature@localhost/a", "user name or password", id="a password"),
    pytest.param("https://[", "redirects to what is not a URL", id="nonsense"),
]


@pytest.mark.parametrize(("location", "message"), REDIRECTS)
def test_redirect_is_held_to_the_rules_of_the_source(server: TlsServer, path: Path, location: str, message: str) -> None:
    server.answers["/start"] = reply(307, Location=location)
    error = failure(server.url("/start"), path)
    assert (error.code, error.reason) == (Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
    assert message in error.message


STATUSES = [
    (404, Exit.DATA_INVALID, "cannot be read (404): there is no such file; check the URL."),
    (410, Exit.DATA_INVALID, "cannot be read (410): there is no such file"),
    (401, Exit.DATA_INVALID, "cannot be read (401): access is refused; use a signed URL that is still valid"),
    (403, Exit.DATA_INVALID, "cannot be read (403): access is refused"),
    (302, Exit.DATA_INVALID, "cannot be read (302): open the URL to see why."),
    (429, Exit.STORAGE_UNAVAILABLE, "The server answered 429 for"),
    (500, Exit.STORAGE_UNAVAILABLE, "The server answered 500 for"),
    (503, Exit.STORAGE_UNAVAILABLE, "it is asked again later."),
]


@pytest.mark.parametrize(("status", "code", "message"), STATUSES)
def test_answer_without_the_file_is_the_users_fault_or_tried_later(server: TlsServer, path: Path, status: int, code: Exit, message: str) -> None:
    server.answers["/rows?signature=x"] = reply(status)
    error = failure(server.url("/rows?signature=x"), path)
    assert (error.code, error.reason) == (code, Reason.DATASET_NOT_FOUND if code is Exit.DATA_INVALID else Reason.STORAGE_UNAVAILABLE)
    assert message in error.message
    assert server.url("/rows") in error.message


def test_certificate_must_be_for_the_name(server: TlsServer, path: Path) -> None:
    error = failure(server.url("/rows", "127.0.0.1"), path)
    assert error.code is Exit.INVALID_CONFIG
    assert "The certificate of 127.0.0.1 is not trusted: IP address mismatch" in error.message
    assert server.requests == []


def test_certificate_must_be_of_a_known_authority(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "The certificate of localhost is not trusted: self-signed certificate" in failure(server.url("/rows"), path).message
    assert server.requests == []


@pytest.mark.parametrize("announced", [True, False])
def test_file_that_is_too_large_is_not_taken(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))

    monkeypatch.setattr(https, "room", lambda _: 2**21)
    server.answers["/rows"] = reply(200, ROWS) if announced else endless
    error = failure(server.url("/rows"), path)
    assert (error.code, error.reason) == (Exit.DATA_INVALID, Reason.DATA_INVALID)
    assert f"{server.url('/rows')} has more than 0.0 GiB, which is what the scratch volume of the prepare step takes of one source" in error.message
    assert path.stat().st_size == (0 if announced else 2**21)


def breaking(handler: Handler, *, etag: str = "", ranges: bool = True) -> None:
    """Sends a third of the rows at most, from where the client asks on if `ranges`."""
    asked = handler.headers.get("Range", "") if ranges and handler.headers.get("If-Range") == etag else ""
    start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
    handler.send_response(206 if asked else 200)
    handler.send_header("Content-Length", str(len(ROWS) - start))
    if asked:
        handler.send_header("Content-Range", f"bytes {start}-{len(ROWS) - 1}/{len(ROWS)}")
    if etag:
        handler.send_header("ETag", etag)
    handler.end_headers()
    handler.wfile.write(ROWS[start : start + len(ROWS) // 3 + 1])
    handler.close_connection = True


def test_download_that_breaks_off_goes_on_where_it_stopped(server: TlsServer, path: Path) -> None:
    server.answers["/rows"] = lambda handler: breaking(handler, etag='"v1"')
    https.download(server.url("/rows"), path)
    assert path.read_bytes() == ROWS
    starts = [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked, _ in server.requests]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(breaking, id="a server without ETag"),
        pytest.param(lambda handler: breaking(handler, etag='W/"v1"'), id="a weak ETag"),
        pytest.param(lambda handler: breaking(handler, etag='"v1"', ranges=False), id="a server without ranges"),
    ],
)
def test_download_that_always_breaks_off_is_tried_later(server: TlsServer, path: Path, answer: Callable[[Handler], None]) -> None:
    server.answers["/rows"] = answer
    error = failure(server.url("/rows"), path)
    assert (error.code, error.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert "cannot be read (ProtocolError): check the host's name" in error.message
    assert len(server.requests) == 4


def test_second_try_replaces_what_the_first_one_left(server: TlsServer, path: Path) -> None:
    def once(handler: Handler) -> None:
        (breaking if len(server.requests) == 1 else reply(200, b"new rows"))(handler)

    server.answers["/rows"] = once
    https.download(server.url("/rows"), path)
    assert path.read_bytes() == b"new rows"


def test_another_part_than_asked_for_is_never_taken_for_the_file(server: TlsServer, path: Path) -> None:
    server.answers["/rows"] = reply(206, ROWS[:100], Content_Range=f"bytes 100-199/{len(ROWS)}")
    assert failure(server.url("/rows"), path).code is Exit.STORAGE_UNAVAILABLE


def test_server_that_is_not_there_is_tried_later(server: TlsServer, path: Path) -> None:
    error = failure(f"https://localhost:{free_port()}/rows", path)
    assert (error.code, error.reason) == (Exit.STORAGE_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert "(NewConnectionError)" in error.message


def test_server_that_does_not_answer_is_tried_later(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(https, "TIMEOUT", Timeout(connect=0.2, read=0.2))
        assert failure(f"https://localhost:{silent.getsockname()[1]}/rows", path).code is Exit.STORAGE_UNAVAILABLE


def test_name_that_is_not_known_is_tried_later(server: TlsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("https://no-such-host.example/rows?signature=x", path)
    assert error.code is Exit.STORAGE_UNAVAILABLE
    assert "https://no-such-host.example/rows cannot be read (gaierror): check the host's name" in error.message
