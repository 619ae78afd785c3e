"""The status server over real sockets. What the API server says of tokens is the outside world here."""

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from finetune_operator import authenticate, status_server
from finetune_operator.authenticate import POD_NAME, POD_UID, Authenticator, Recent, RefusedError, read_review
from finetune_operator.kube import ApiError
from finetune_operator.progress import ProgressStore
from finetune_operator.ratelimit import Buckets
from finetune_operator.status_server import MAX_BODY, REPORTS, StatusServer, health_app, serve
from finetune_operator.tls import make_identity

AUDIENCE = "finetune-operator"
PATH = "/v1alpha1/namespaces/team/finetunejobs/support/status"
SECRET = "s3cr3t-t0ken"
REPORT = json.dumps({"trainerStatus": {"lastUpdatedTime": "2027-01-15T08:00:00Z", "metrics": [{"name": "step", "value": "12"}]}})


def review(pod: str = "support-1", uid: str = "u1", namespace: str = "team", audiences: tuple[str, ...] = (AUDIENCE,), **user: Any) -> dict[str, Any]:
    extra = {POD_NAME: [pod], POD_UID: [uid]}
    return {"authenticated": True, "audiences": list(audiences), "user": {"username": f"system:serviceaccount:{namespace}:default", "extra": extra} | user}


REFUSED = {"authenticated": False, "error": "invalid bearer token"}


@dataclass
class Reviewer:
    """Knows tokens; everything else is refused."""

    known: dict[str, dict[str, Any]] = field(default_factory=lambda: {SECRET: review()})
    error: ApiError | None = None
    seconds: float = 0.0
    asked: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        assert audience == AUDIENCE
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        if self.error:
            raise self.error
        return self.known.get(token, REFUSED)


@dataclass
class Edge:
    """A running server, and what reached the operator behind it."""

    client: TestClient[web.Request, web.Application]
    reviewer: Reviewer
    progress: ProgressStore
    workers: dict[tuple[str, str, str, str], str]
    notified: list[tuple[str, str]]

    async def post(self, data: Any = REPORT, token: str = SECRET, path: str = PATH, **headers: str) -> tuple[int, str]:
        async with self.client.post(path, data=data, headers={"Authorization": f"Bearer {token}"} | headers) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    reviewer, progress, notified = Reviewer(), ProgressStore(), list[tuple[str, str]]()
    workers = {("team", "support", "support-1", "u1"): "uid-1"}
    server = StatusServer(reviewer, AUDIENCE, progress, lambda *pod: workers.get(pod, ""), notified.append)
    async with TestClient(TestServer(server.app())) as client:
        yield Edge(client, reviewer, progress, workers, notified)


async def test_a_report_is_taken(edge: Edge) -> None:
    assert (await edge.post())[0] == 200
    found = edge.progress.latest(("team", "support"), "uid-1", 0)
    assert found is not None
    assert found.step == 12
    assert edge.notified == [("team", "support")]


ANSWERS: list[tuple[str, dict[str, Any], int, str]] = [
    ("no token", {"Authorization": ""}, 401, "as a bearer token"),
    ("another scheme", {"Authorization": f"Basic {SECRET}"}, 401, "as a bearer token"),
    ("an empty token", {"Authorization": "Bearer  "}, 401, "as a bearer token"),
    ("a token that nobody issued", {"token": "nonsense"}, 401, "not valid here"),
    ("a token for another audience", {"token": "other-audience"}, 401, "with the audience finetune-operator"),
    ("a token of a person", {"token": "person"}, 403, "pod's own service account token"),
    ("a token that is bound to no pod", {"token": "unbound"}, 403, "pod's own service account token"),
    ("a pod of another namespace", {"token": "elsewhere"}, 403, "other/support-1 with UID u1 does not work"),
    ("a pod of no job", {"token": "bystander"}, 403, "team/web-1 with UID u7 does not work"),
    ("an earlier pod of the same name", {"token": "earlier"}, 403, "with UID u0 does not work"),
    ("another job", {"path": PATH.replace("support", "sales")}, 403, "does not work for this FineTuneJob"),
    ("too long", {"data": "x" * (MAX_BODY + 1)}, 413, "at most 65536 bytes"),
    ("no document", {"data": "{"}, 422, "Invalid JSON"),
    ("a document without a report", {"data": "{}"}, 422, "trainerStatus: Field required"),
    ("a broken metric", {"data": REPORT.replace('"12"', "12")}, 422, "trainerStatus.metrics.0.value: "),
    ("another path", {"path": "/v1alpha1/namespaces/team/finetunejobs/support"}, 404, ""),
    ("a path with more in it", {"path": f"{PATH}/x"}, 404, ""),
]


@pytest.mark.parametrize(("request_", "status", "says"), [c[1:] for c in ANSWERS], ids=[c[0] for c in ANSWERS])
async def test_answer(edge: Edge, request_: dict[str, Any], status: int, says: str) -> None:
    edge.reviewer.known |= {
        "other-audience": review(audiences=("https://kubernetes.default.svc",)),
        "person": review(username="alice"),
        "unbound": review(extra={}),
        "elsewhere": review(namespace="other"),
        "bystander": review(pod="web-1", uid="u7"),
        "earlier": review(uid="u0"),
    }
    answered, text = await edge.post(**request_)
    assert answered == status
    assert says in text
    assert request_.get("token", SECRET) not in text
    assert edge.progress.latest(("team", "support"), "uid-1", 0) is None
    assert edge.notified == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_only_post_is_allowed(edge: Edge, method: str) -> None:
    async with edge.client.request(method, PATH) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_an_answer_never_repeats_what_was_sent(edge: Edge) -> None:
    bodies = ['{"trainerStatus": {"lastUpdatedTime": "x", "progressPercentage": "private"}}', '{"private": 1', '["private"]']
    for body in bodies:
        status, text = await edge.post(body)
        assert (status, "private" in text) == (422, False)


async def test_a_401_names_the_scheme(edge: Edge) -> None:
    async with edge.client.post(PATH) as answer:
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_body_without_a_length_is_cut_off_too(edge: Edge) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b"x" * 1024

    assert (await edge.post(chunks()))[0] == 413


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(edge: Edge) -> None:
    assert (await edge.post(gzip.compress(b" " * 10_000_000), **{"Content-Encoding": "gzip"}))[0] in {400, 413}
    assert edge.notified == []


async def test_nobody_without_the_right_has_a_body_read(edge: Edge) -> None:
    """The answer comes although the body never does."""
    edge.workers.clear()
    for token, status in ((SECRET, b"403"), ("nonsense", b"401"), ("", b"401")):
        reader, writer = await asyncio.open_connection(edge.client.host, edge.client.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 60000\r\n\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 2)).split()[1] == status
        writer.close()


async def test_a_pod_that_is_seen_a_moment_late_is_right_on_its_next_report(edge: Edge) -> None:
    edge.workers.clear()
    assert (await edge.post())[0] == 403
    edge.workers["team", "support", "support-1", "u1"] = "uid-1"
    assert (await edge.post())[0] == 200
    assert edge.reviewer.asked == 1


class TestTooMany:
    async def test_a_pod_may_report_a_few_times_at_once_and_then_has_to_wait(self, edge: Edge) -> None:
        assert [(await edge.post())[0] for _ in range(REPORTS + 2)] == [200] * REPORTS + [429] * 2
        async with edge.client.post(PATH, data=REPORT, headers={"Authorization": f"Bearer {SECRET}"}) as answer:
            assert 1 <= int(answer.headers["Retry-After"]) <= 5
            assert "dropped" in await answer.text()
        assert len(edge.notified) == REPORTS

    async def test_one_pod_does_not_use_up_what_another_may(self, edge: Edge) -> None:
        edge.reviewer.known["second"] = review(pod="support-2", uid="u2")
        edge.workers["team", "support", "support-2", "u2"] = "uid-1"
        assert [(await edge.post())[0] for _ in range(REPORTS + 1)][-1] == 429
        assert (await edge.post(token="second"))[0] == 200

    async def test_a_known_token_is_not_reviewed_again(self, edge: Edge) -> None:
        for _ in range(REPORTS):
            await edge.post()
        assert edge.reviewer.asked == 1

    async def test_a_refused_token_is_not_reviewed_again_at_once(self, edge: Edge) -> None:
        assert [(await edge.post(token="nonsense"))[0] for _ in range(50)] == [401] * 50
        assert edge.reviewer.asked == 1

    async def test_an_address_that_guesses_is_no_longer_listened_to(self, edge: Edge) -> None:
        found = [(await edge.post(token=f"guess-{n}"))[0] for n in range(40)]
        assert found == [401] * authenticate.REFUSALS + [429] * (40 - authenticate.REFUSALS)
        assert edge.reviewer.asked == authenticate.REFUSALS

    async def test_guesses_at_once_have_no_more_than_one_after_the_other(self, edge: Edge) -> None:
        edge.reviewer.seconds = 0.1
        found = await asyncio.gather(*(edge.post(token=f"guess-{n}") for n in range(80)))
        assert sorted({status for status, _ in found}) == [401, 429]
        assert edge.reviewer.asked == authenticate.REFUSALS

    async def test_who_is_known_already_is_served_beside_a_guesser_of_the_same_address(self, edge: Edge) -> None:
        assert (await edge.post())[0] == 200
        for n in range(40):
            await edge.post(token=f"guess-{n}")
        assert (await edge.post())[0] == 200


class TestReviews:
    """Of the Authenticator by itself, where time can be set."""

    async def test_only_so_many_are_made_at_once(self) -> None:
        reviewer = Reviewer(known={f"t{n}": review(uid=f"u{n}") for n in range(100)}, seconds=0.01)
        found = Authenticator(reviewer, AUDIENCE)
        pods = await asyncio.gather(*(found.pod(f"t{n}", f"10.0.0.{n}") for n in range(100)))
        assert {pod.uid for pod in pods} == {f"u{n}" for n in range(100)}
        assert reviewer.most_at_once == authenticate.REVIEWS_AT_ONCE

    async def test_good_tokens_cost_an_address_nothing(self) -> None:
        count = 10 * authenticate.REFUSALS
        found = Authenticator(Reviewer(known={f"t{n}": review(uid=f"u{n}") for n in range(count)}), AUDIENCE, lambda: 0.0)
        for n in range(count):
            assert (await found.pod(f"t{n}", "10.0.0.1")).uid == f"u{n}"

    @pytest.mark.parametrize(
        ("token", "seconds", "asked"),
        [(SECRET, authenticate.ACCEPTED_SECONDS, 2), (SECRET, authenticate.ACCEPTED_SECONDS - 1, 1), ("x", authenticate.REFUSED_SECONDS, 2), ("x", 1, 1)],
        ids=["a good one is reviewed again in time", "and not before", "a refused one may have become good", "but not at once"],
    )
    async def test_what_is_remembered_is_forgotten_in_time(self, token: str, seconds: float, asked: int) -> None:
        time, reviewer = [0.0], Reviewer()
        found = Authenticator(reviewer, AUDIENCE, lambda: time[0])
        for now in (0.0, seconds):
            time[0] = now
            try:
                await found.pod(token, "10.0.0.1")
            except RefusedError:
                assert token == "x"
        assert reviewer.asked == asked

    async def test_an_api_server_that_cannot_answer_gives_503_and_costs_nothing(self, edge: Edge) -> None:
        edge.reviewer.error = ApiError(500, "etcd is on fire")
        for _ in range(2 * authenticate.REFUSALS):
            status, text = await edge.post()
            assert (status, "etcd" in text) == (503, False)
        edge.reviewer.error = None
        assert (await edge.post())[0] == 200

    async def test_an_api_server_that_hangs_gives_503(self, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(authenticate, "REVIEW_SECONDS", 0.1)
        edge.reviewer.seconds = 30
        assert {(await edge.post(token=f"t{n}"))[0] for n in range(authenticate.REVIEWS_AT_ONCE + 1)} == {503}

    @pytest.mark.parametrize(
        "broken",
        [
            {},
            {"authenticated": True},
            {"authenticated": True, "audiences": [AUDIENCE]},
            review(username="system:serviceaccount:x"),
            review(extra={POD_NAME: ["p"]}),
        ],
    )
    def test_an_answer_that_does_not_name_a_pod_is_a_refusal(self, broken: dict[str, Any]) -> None:
        with pytest.raises(RefusedError):
            read_review(broken, AUDIENCE)

    def test_only_the_last_ones_are_remembered(self) -> None:
        found: Recent[int] = Recent(seconds=60, entries=3)
        for number in range(3):
            found.put(str(number), number, 0)
        assert found.get("0", 1) == 0  # asked for: it stays
        found.put("3", 3, 1)
        assert [found.get(str(number), 2) for number in range(4)] == [0, None, 2, 3]
        assert [found.get(str(number), 60) for number in range(4)] == [None, None, None, 3]
        assert len(found) == 1


# Seconds at which a request comes, and the wait that it is told.
BUCKETS: list[tuple[str, list[float], list[float]]] = [
    ("a burst is granted", [0, 0, 0], [0, 0, 0]),
    ("more has to wait for a refill", [0, 0, 0, 0, 1], [0, 0, 0, 5, 4]),
    ("refused requests cost nothing", [0, 0, 0, 1, 2, 3, 5], [0, 0, 0, 4, 3, 2, 0]),
    ("a steady pace is always granted", [5.0 * n for n in range(9)], [0.0] * 9),
    ("rest fills it up to the burst and no further", [0, 0, 0, 1000, 1000, 1000, 1000], [0, 0, 0, 0, 0, 0, 5]),
]


@pytest.mark.parametrize(("times", "waits"), [c[1:] for c in BUCKETS], ids=[c[0] for c in BUCKETS])
def test_bucket(times: list[float], waits: list[float]) -> None:
    buckets: Buckets[str] = Buckets(3, 0.2, 10)
    assert [buckets.take("a", now) for now in times] == pytest.approx(waits)
    assert buckets.take("b", times[-1]) == 0


def test_buckets_stay_few_and_a_grant_can_be_given_back() -> None:
    buckets: Buckets[int] = Buckets(1, 0.2, 2)
    assert [buckets.take(key, 0) for key in (1, 2, 1)] == [0, 0, 5]
    assert buckets.take(3, 0) == 0  # 2, which was not seen for longest, is forgotten for it
    assert (buckets.take(1, 0), buckets.take(2, 0)) == (5, 0)
    buckets.give_back(2, 0)
    assert (buckets.take(2, 0), buckets.take(2, 0)) == (0, 5)


@asynccontextmanager
async def served(app: web.Application, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    runner = await serve(app, 0, context)
    try:
        yield next(address[1] for address in runner.addresses if len(address) == 2)  # of IPv4
    finally:
        await runner.cleanup()


def server(job_of: Callable[..., str] = lambda *_: "uid-1") -> web.Application:
    return StatusServer(Reviewer(), AUDIENCE, ProgressStore(), job_of, lambda _: None).app()


class TestConnections:
    @pytest.mark.parametrize("sent", [b"", b"POST /v1", f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()], ids=["nothing", "half a line", "half a head"])
    async def test_a_client_that_does_not_finish_its_head_is_dropped(self, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status_server, "IDLE_SECONDS", 0.3)
        async with served(server()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 3) == b""
            writer.close()

    async def test_a_client_that_does_not_finish_its_body_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status_server, "BODY_SECONDS", 0.3)
        async with served(server()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 999\r\n\r\n{{".encode())
            assert b" 408 " in await asyncio.wait_for(reader.readline(), 3)
            writer.close()

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
    async def test_tls_is_spoken(self, version: ssl.TLSVersion) -> None:
        identity = make_identity("localhost")
        client = ssl.create_default_context(cadata=identity.certificate)
        client.minimum_version = client.maximum_version = version
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with served(server(), identity.context) as port, ClientSession(f"https://localhost:{port}", headers=headers) as session:
            answer = await session.post(PATH, data=REPORT, ssl=client)
            assert answer.status == 200

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
    async def test_old_tls_is_not(self) -> None:
        identity = make_identity("localhost")
        identity.context.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that it is our own setting that refuses, and not the system's
        client = ssl.create_default_context(cadata=identity.certificate)
        client.set_ciphers("DEFAULT:@SECLEVEL=0")
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        async with served(server(), identity.context) as port:
            with pytest.raises(OSError):
                await asyncio.open_connection("localhost", port, ssl=client)

    async def test_plain_http_is_not_answered(self) -> None:
        async with served(server(), make_identity("localhost").context) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 3)
            writer.close()

    async def test_answers_are_counted_by_their_status(self) -> None:
        async with served(server()) as port, served(health_app(lambda: True)) as other, ClientSession() as session:

            async def refused() -> float:
                async with session.get(f"http://127.0.0.1:{other}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                return sum(float(line.split()[-1]) for line in lines if line.startswith('finetune_progress_reports_total{status="401"}'))

            before = await refused()
            async with session.post(f"http://127.0.0.1:{port}{PATH}") as answer:
                assert answer.status == 401
            assert await refused() == before + 1

    @pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
    async def test_readiness(self, ready: bool, status: int) -> None:
        async with served(health_app(lambda: ready)) as port, ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == status
