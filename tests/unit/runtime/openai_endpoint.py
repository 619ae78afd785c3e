"""A server on the loopback interface that speaks just enough of the OpenAI API to speak it badly: it fails, hangs and lies as it is told to."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

Body = dict[str, Any]
Behaviour = Callable[["Handler", Body], None]


class Handler(BaseHTTPRequestHandler):
    """One request. `endpoint` is set by the server's class."""

    endpoint: "Endpoint"
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.endpoint.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.endpoint.requests.append(body)
        self.endpoint.keys.append(self.headers.get("Authorization", ""))
        self.endpoint.times.append(time.monotonic())
        script = self.endpoint.script
        (script.pop(0) if len(script) > 1 else script[0])(self, body)

    def answer(self, status: int, document: Any, **headers: str) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()


class Endpoint:
    """What a request for a chat completion meets: the behaviours of `script` in order, the last one again and again."""

    def __init__(self, script: Sequence[Behaviour], models: Sequence[str]) -> None:
        self.script, self.models = list(script), list(models)
        self.requests: list[Body] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.over = Event()  # releases what hangs
        self.url = ""


@contextmanager
def endpoint(*script: Behaviour, models: Sequence[str] = ("support", "base")) -> Iterator[Endpoint]:
    """A running one."""
    found = Endpoint(script, models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"endpoint": found}))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def chunk(text: str | None = None, finish: str | None = None, **delta: Any) -> str:
    """One piece of an answer."""
    choice = {"index": 0, "delta": {**({"content": text} if text is not None else {}), **delta}, "finish_reason": finish}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "support", "choices": [choice]})


def usage(tokens: int) -> str:
    """The piece behind the last one."""
    counted = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "support", "choices": [], "usage": counted})


def sends(*events: str) -> Behaviour:
    """Exactly these events, and the end of the connection."""

    def behave(handler: Handler, body: Body) -> None:
        handler.start_stream()
        for event in events:
            handler.wfile.write(f"data: {event}\n\n".encode())

    return behave


def says(text: str | Callable[[Body], str], *, before: float = 0.0, between: float = 0.0, finish: str = "stop", counted: bool = True) -> Behaviour:
    """Answers word by word, as a server should. `before`, `between`: seconds to the first word, and from word to word."""

    def behave(handler: Handler, body: Body) -> None:
        words = (text if isinstance(text, str) else text(body)).split(" ")
        time.sleep(before)
        handler.start_stream()
        for number, word in enumerate(words):
            if number:
                time.sleep(between)
            handler.wfile.write(f"data: {chunk(word if number == 0 else f' {word}')}\n\n".encode())
            handler.wfile.flush()
        tail = [chunk(finish=finish), *([usage(len(words))] if counted else []), "[DONE]"]
        handler.wfile.write("".join(f"data: {event}\n\n" for event in tail).encode())

    return behave


def refuses(status: int, document: Any = None, **headers: str) -> Behaviour:
    """Answers with an error."""
    return lambda handler, _: handler.answer(status, {"error": {"message": f"status {status}"}} if document is None else document, **headers)


def hangs(handler: Handler, body: Body) -> None:
    """Says nothing at all."""
    handler.close_connection = True
    handler.endpoint.over.wait(60)


def stalls(handler: Handler, body: Body) -> None:
    """Says something, and then nothing."""
    handler.start_stream()
    handler.wfile.write(f"data: {chunk('Hel')}\n\n".encode())
    handler.wfile.flush()
    handler.endpoint.over.wait(60)


def hangs_up(handler: Handler, body: Body) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def pings(handler: Handler, body: Body) -> None:
    """Sends signs of life for ever, and nothing else."""
    handler.start_stream()
    while not handler.endpoint.over.wait(0.02):
        handler.wfile.write(b": still there\n\n")
        handler.wfile.flush()
