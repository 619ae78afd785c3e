"""An https:// server on the loopback interface whose answers a test writes, with a certificate of its own for `localhost`."""

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Handler = BaseHTTPRequestHandler


@dataclass
class TlsServer:
    """`answers`: what is done for each path. `requests`: (path, Range, Host) of each request; `names`: what clients asked for by SNI."""

    certificate: Path
    port: int = 0
    answers: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"


def reply(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    """An answer with a length; header names are written with _ for -."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def serve(directory: Path) -> Iterator[TlsServer]:
    """A running server; its certificate and key lie in `directory`."""
    certificate, key = directory / "server.crt", directory / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    alternatives = ["-addext", "subjectAltName=DNS:localhost,DNS:data.example.test"]
    subprocess.run([*command, *alternatives, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = TlsServer(certificate)

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers.get("Range", ""), self.headers.get("Host", "")))
            server.answers.get(self.path, reply(404))(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up in the middle by intent

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, name, _context: server.names.append(name)
    listener = Server(("127.0.0.1", 0), Answering)
    # The handshake is left to the first read, in the connection's own thread: one that fails must not end the server's loop.
    listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.port = listener.server_port
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
