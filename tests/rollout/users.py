"""Users of an endpoint: they ask it again and again, and write one line of JSON for every request. Runs by itself in a pod, with the OpenAI client alone.

    python3 users.py BASE_URL MODEL

One user opens a connection for every request, one keeps its connection, and one does so and reads streams. All rely on the OpenAI client's own
retries, and tell how many it took. SIGTERM ends them after the requests under way; the last line tells how many there were.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from openai import APIError, OpenAI, OpenAIError

PAUSE = 0.5  # seconds between two requests of one user
RETRIES = 5  # the client waits 0.5, 1, 2, 4 and 8 s before them
QUESTION: list[Any] = [{"role": "user", "content": "Where am I?"}]


def plain(client: OpenAI, model: str) -> tuple[str, int]:
    """An answer, and the retries that it took."""
    reply = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, temperature=0, max_tokens=24)
    return reply.parse().choices[0].message.content or "", reply.retries_taken


def streamed(client: OpenAI, model: str) -> tuple[str, int]:
    """The same in pieces. One that breaks off is asked for anew: the client cannot do that for its user."""
    for retries in range(RETRIES + 1):
        reply = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, temperature=0, max_tokens=24, stream=True)
        try:
            pieces = [chunk.choices[0].delta.content or "" for chunk in reply.parse() if chunk.choices]
        except APIError:
            time.sleep(0.5 * 2**retries)
            continue
        return "".join(pieces), retries + reply.retries_taken
    raise OpenAIError(f"{RETRIES + 1} streams broke off")


def use(kind: str, ask: Callable[[], tuple[str, int]], say: Callable[[dict[str, Any]], None], over: threading.Event) -> None:
    while not over.wait(PAUSE):
        told: dict[str, Any] = {"kind": kind, "start": time.time(), "answer": "", "retries": 0, "error": ""}
        try:
            told["answer"], told["retries"] = ask()
        except Exception as error:  # noqa: BLE001  whatever a user would see counts as a failed request
            told["error"] = f"{type(error).__name__}: {error}"
        say({**told, "end": time.time()})


def main() -> None:
    url, model = sys.argv[1:]
    lock, over, count = threading.Lock(), threading.Event(), 0

    def say(line: dict[str, Any]) -> None:
        nonlocal count
        with lock:
            count += 1
            print(json.dumps(line), flush=True)

    def client(**headers: str) -> OpenAI:
        return OpenAI(base_url=url, api_key="none", timeout=30, max_retries=RETRIES, default_headers=headers)

    new, kept, stream = client(Connection="close"), client(), client()
    users = {"new": lambda: plain(new, model), "kept": lambda: plain(kept, model), "stream": lambda: streamed(stream, model)}
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    threads = [threading.Thread(target=use, args=(kind, ask, say, over)) for kind, ask in users.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"requests": count}), flush=True)


if __name__ == "__main__":
    main()
