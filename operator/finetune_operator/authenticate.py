"""Whose token it is. The API server decides; it is asked seldom, and never as often as strangers would like."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .kube import ApiError
from .plan.types import Body
from .ratelimit import Buckets

log = logging.getLogger(__name__)

ACCEPTED_SECONDS = 60.0  # for which a token that has expired is still taken; whether its pod still works is asked each time
REFUSED_SECONDS = 10.0  # short: a pod that has only just started may be known to the API server a moment later
TOKENS = 4096  # remembered of each sort
REVIEWS_AT_ONCE = 8
REVIEW_SECONDS = 10.0  # to wait for a turn and for the answer
REFUSALS, REFUSALS_PER_SECOND = 16, 0.2  # that one address may cause reviews for
ADDRESSES = 4096

POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


class RefusedError(Exception):
    """The token is good for nothing here (401), or belongs to no pod (403). The message tells the cure and nothing of the token."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class TooManyRefusalsError(Exception):
    """Reviews are not made for this address now."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"too many tokens were refused: try again in {wait:.0f} s")
        self.wait = wait


class UnavailableError(Exception):
    """The API server cannot tell now."""


class TokenReviewer(Protocol):
    """What reviews tokens: the API server, through kube.Cluster."""

    async def review_token(self, token: str, audience: str) -> Body:
        """Status of a TokenReview. Raises ApiError."""
        ...


class Recent(Generic[T]):
    """The entries that were put in last and are not too old."""

    def __init__(self, seconds: float, entries: int) -> None:
        self._seconds, self._entries = seconds, entries
        self._items: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str, now: float) -> T | None:
        """The entry; None: there is none, or it is too old."""
        until, item = self._items.get(key, (now, None))
        if until <= now:
            self._items.pop(key, None)
            return None
        self._items.move_to_end(key)
        return item

    def put(self, key: str, item: T, now: float) -> None:
        """Remember; of too many, those that were not asked for longest are forgotten."""
        self._items[key] = (now + self._seconds, item)
        self._items.move_to_end(key)
        if len(self._items) > self._entries:
            self._items.popitem(last=False)


class Authenticator:
    """Pods by their tokens. Remembers digests only; what is refused never pushes out what is accepted."""

    def __init__(self, reviewer: TokenReviewer, audience: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._reviewer, self._audience, self._clock = reviewer, audience, clock
        self._accepted: Recent[Pod] = Recent(ACCEPTED_SECONDS, TOKENS)
        self._refused: Recent[tuple[int, str]] = Recent(REFUSED_SECONDS, TOKENS)
        self._allowances: Buckets[str] = Buckets(REFUSALS, REFUSALS_PER_SECOND, ADDRESSES)
        self._turn = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def pod(self, token: str, address: str) -> Pod:
        """The pod of a token that came from `address`. Raises RefusedError, TooManyRefusalsError, UnavailableError."""
        digest, now = hashlib.sha256(token.encode()).hexdigest(), self._clock()
        if known := self._accepted.get(digest, now):
            return known
        if refused := self._refused.get(digest, now):
            raise RefusedError(*refused)
        # Taken ahead of the review, so that many requests at once have no more than one has; only refusals are paid for.
        if wait := self._allowances.take(address, now):
            raise TooManyRefusalsError(wait)
        try:
            pod = await self._review(token)
        except RefusedError as error:
            self._refused.put(digest, (error.status, error.message), self._clock())
            raise
        except UnavailableError:
            self._allowances.give_back(address, self._clock())
            raise
        self._allowances.give_back(address, self._clock())
        self._accepted.put(digest, pod, self._clock())
        return pod

    async def _review(self, token: str) -> Pod:
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._turn:
                review = await self._reviewer.review_token(token, self._audience)
        except (ApiError, TimeoutError) as error:
            log.warning("a token cannot be reviewed: %s", error or type(error).__name__)
            raise UnavailableError from error
        return read_review(review, self._audience)


def read_review(review: Body, audience: str) -> Pod:
    """The pod that a TokenReview's status names. Raises RefusedError."""
    if not review.get("authenticated") or audience not in (review.get("audiences") or []):
        raise RefusedError(401, f"the bearer token is not valid here: project a service account token with the audience {audience}")
    user = review.get("user") or {}
    extra = user.get("extra") or {}
    names, uids = extra.get(POD_NAME) or [], extra.get(POD_UID) or []
    account = str(user.get("username", "")).split(":")
    if account[:2] != ["system", "serviceaccount"] or len(account) != 4 or not names or not uids:
        raise RefusedError(403, "only a pod's own service account token may report progress")
    return Pod(account[2], names[0], uids[0])
