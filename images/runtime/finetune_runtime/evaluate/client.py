"""One model behind an OpenAI-compatible API, asked as users ask it: chat completions, streamed."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar, cast

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, OpenAI, Stream, Timeout
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from finetune_runtime.report.evaluation_data import Answer

from .expectation import shown
from .time_limit import time_limit

log = logging.getLogger(__name__)

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

_LATER = frozenset({408, 409, 425, 429})  # client errors by number, yet another try may succeed
_NEVER = frozenset({401, 403, 404, 405})  # no answer of the model: the address, the name or the key is wrong
_LISTING_SECONDS = 60.0
MAX_ANSWER = 2**20  # characters


@dataclass(frozen=True)
class Completion:
    """What follows a prompt of token ids. `logprobs`: of prompt and answer together, where they were asked for; None where the server knows none."""

    text: str
    logprobs: list[float | None]


@dataclass(frozen=True)
class Limits:
    """How long an endpoint is waited for. `patience`: seconds from a request's first try to its last one's start; `silence`: between two tokens."""

    tries: int = 6
    patience: float = 180.0
    silence: float = 120.0
    first_pause: float = 1.0  # seconds before the second try; each further one is twice as long
    longest_pause: float = 30.0


class UnansweredError(Exception):
    """The endpoint gives no answers; the text says why, without its end. `final`: trying again later would not help."""

    def __init__(self, cause: str, *, final: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.final = cause, final


class _TryAgainError(Exception):
    def __init__(self, cause: str, after: float = 0.0) -> None:
        super().__init__(cause)
        self.after = after


class Client:
    """Retries what may be a passing fault. Every method raises UnansweredError. `key` is never shown, neither in logs nor in messages."""

    def __init__(self, url: str, model: str, *, key: str = "", limits: Limits | None = None) -> None:
        self.url, self.model = url, model
        self._key, self._limits = key, limits or Limits()
        timeout = Timeout(self._limits.silence, connect=10.0)
        # A key is always given: without one the library takes OPENAI_API_KEY of the environment, which may be meant for somebody else.
        self._api = OpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=0, organization="", project="")

    def check_served(self) -> None:
        """Raises UnansweredError when the endpoint does not list the model."""
        listed = self._persist(lambda: [str(model.id) for model in self._api.models.list().data], _LISTING_SECONDS)
        if self.model not in listed:
            raise UnansweredError(f"{self.url} serves {', '.join(listed) or 'nothing'}, but not {self.model}", final=True)

    def ask(self, messages: Messages, *, seconds: float, **parameters: Any) -> Answer:
        """The answer, or the server's refusal of this very request. `seconds`: the longest that an answer may take."""
        return self._persist(lambda: self._ask(messages, parameters), seconds)

    def complete(self, tokens: Sequence[int], *, seconds: float, **parameters: Any) -> Completion | None:
        """What follows these token ids; None when the server refuses this very request. `seconds`: the longest that it may take."""
        return self._persist(lambda: self._complete(tokens, parameters), seconds)

    def _complete(self, tokens: Sequence[int], parameters: Mapping[str, Any]) -> Completion | None:
        try:
            found = self._api.completions.create(model=self.model, prompt=list(tokens), **parameters)
        except APIStatusError as error:
            # 404 as well: an engine without this part of the API.
            if error.status_code in _LATER or (error.status_code in _NEVER and error.status_code not in (404, 405)) or error.status_code >= 500:
                raise
            return None
        choice = found.choices[0]
        return Completion(choice.text, list((choice.logprobs and choice.logprobs.token_logprobs) or []))

    def _ask(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer:
        started = time.monotonic()
        try:
            stream: Stream[ChatCompletionChunk] = self._api.chat.completions.create(
                model=self.model,
                messages=cast("Iterable[ChatCompletionMessageParam]", messages),
                stream=True,
                stream_options={"include_usage": True},
                **parameters,
            )
        except APIStatusError as error:
            if error.status_code in _LATER | _NEVER or not 400 <= error.status_code < 500:
                raise
            return Answer(refused=self._words(error))
        with stream:
            return _read(stream, started)

    def _persist(self, work: Callable[[], T], seconds: float) -> T:
        limits, end = self._limits, time.monotonic() + self._limits.patience
        for attempt in count(1):
            try:
                return self._once(work, seconds)
            except _TryAgainError as error:
                pause = max(min(limits.first_pause * 2 ** (attempt - 1), limits.longest_pause), error.after)
                if attempt >= limits.tries or time.monotonic() + pause > end:
                    tries = f"{attempt} tries" if attempt > 1 else "one try"
                    raise UnansweredError(f"{self.url} gave no answer in {tries}: {error}") from None
                log.warning("%s: %s; trying again in %.0f s", self.url, error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(self, work: Callable[[], T], seconds: float) -> T:
        started = time.monotonic()
        try:
            with time_limit(seconds):  # of the whole: a server that sends signs of life and no answer is never silent
                return work()
        except Exception as error:  # noqa: BLE001  raised again below, as what it means
            if time.monotonic() - started >= seconds:  # whatever the libraries made of the interruption
                raise _TryAgainError(f"it takes longer than {seconds:.0f} s") from None
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> Exception:
        match error:
            case APITimeoutError():
                return _TryAgainError("it is silent for too long")
            case APIConnectionError():
                return _TryAgainError(self._hidden(f"the connection fails ({type(error.__cause__).__name__}: {error.__cause__})"))
            case APIStatusError() if error.status_code in _NEVER:
                return UnansweredError(f"{self.url} answers {self._words(error)}", final=True)
            case APIStatusError():
                return _TryAgainError(self._words(error), _retry_after(error))
            case APIError():  # sent in the middle of a stream
                return _TryAgainError(self._hidden(f"it breaks off with {error.message}"))
            # The library makes its objects of whatever JSON there is, without validating it.
            case ValueError() | TypeError() | AttributeError() | LookupError():
                return _TryAgainError(self._hidden(f"what it sends is not as the OpenAI API has it ({type(error).__name__}: {error})"))
            case _:
                return error

    def _words(self, error: APIStatusError) -> str:
        body = error.body if isinstance(error.body, Mapping) else {}
        return self._hidden(f"{error.status_code} {body.get('message') or error.response.reason_phrase}")

    def _hidden(self, text: str) -> str:
        """On one line, and without the key: servers repeat what they were sent."""
        for form in (self._key, repr(self._key)[1:-1], repr(self._key.encode())[2:-1]) if self._key else ():  # errors may quote a header's bytes
            text = text.replace(form, "[key]")
        return shown(text)


def _read(stream: Iterable[ChatCompletionChunk], started: float) -> Answer:
    """The answer of a whole stream. Raises _TryAgainError for one that is cut off or too long."""
    pieces: list[str] = []
    first: float | None = None
    deltas = size = 0
    tokens: int | None = None
    finish = ""
    for chunk in stream:
        now = time.monotonic() - started
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        for choice in chunk.choices[:1]:
            finish = choice.finish_reason or finish
            text = choice.delta.content or ""
            # Engines send reasoning apart from the answer, by one of two names.
            if text or getattr(choice.delta, "reasoning_content", None) or getattr(choice.delta, "reasoning", None):
                first = now if first is None else first
                deltas += 1
            pieces.append(text)
            size += len(text)
            if size > MAX_ANSWER:
                raise _TryAgainError(f"an answer has more than {MAX_ANSWER:,} characters")
    total = time.monotonic() - started
    if not finish:
        raise _TryAgainError("an answer breaks off in the middle")
    # Engines that do not count send a token at a time.
    return Answer(
        text="".join(pieces), seconds=total, first_token_seconds=total if first is None else first, tokens=deltas if tokens is None else tokens, finish=finish
    )


def _retry_after(error: APIStatusError) -> float:
    """Seconds that the server wants to be left alone; 0 when it does not say."""
    try:
        return min(max(float(error.response.headers.get("retry-after", "0")), 0.0), 60.0)
    except ValueError:  # a date
        return 0.0
