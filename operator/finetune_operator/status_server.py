"""HTTP servers of the operator: progress reports over TLS, and health and metrics in plain HTTP."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from finetune_runtime.contract.result import ProgressReport

from . import metrics
from .authenticate import Authenticator, RefusedError, TokenReviewer, TooManyRefusalsError, UnavailableError
from .progress import ProgressStore
from .ratelimit import Buckets

MAX_BODY = 64 * 1024
BODY_SECONDS = 10.0  # in which a body has to arrive
IDLE_SECONDS = 10.0  # in which a request's head has to arrive, on a new connection and between two requests
LINGER_SECONDS = 2.0  # for which the rest of a refused body is read, so that the client gets to see the answer
STOP_SECONDS = 5.0  # that the end of the process waits for requests under way
# The protocol wants 5 s between two reports. A pod sends a few more when its training process or its pod ends.
REPORTS, REPORTS_PER_SECOND = 4, 0.2
PODS = 4096


def _retry(error: type[web.HTTPException], seconds: float, text: str) -> web.HTTPException:
    return error(text=text, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def _unauthorized(text: str) -> web.HTTPException:
    return web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": "Bearer"})


class StatusServer:
    """Takes progress reports. A pod may only report on the job that it works for.

    Whatever is refused is refused before the body is read, and a report that is refused is lost: the next one says more.
    """

    def __init__(
        self,
        reviewer: TokenReviewer,
        audience: str,
        progress: ProgressStore,
        job_of: Callable[[str, str, str, str], str],
        notify: Callable[[tuple[str, str]], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`job_of(namespace, job, pod name, pod uid)` is the UID of the job when the pod works for it, else empty; `notify` hears of each report."""
        self._authenticator = Authenticator(reviewer, audience)
        self._progress, self._job_of, self._notify, self._now = progress, job_of, notify, now
        self._allowances: Buckets[str] = Buckets(REPORTS, REPORTS_PER_SECOND, PODS)

    def app(self) -> web.Application:
        """The application behind TLS."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_count])
        app.router.add_post("/v1alpha1/namespaces/{namespace}/finetunejobs/{name}/status", self._report)
        return app

    async def _report(self, request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        job, pod = await self._authorize(request, key)
        if wait := self._allowances.take(pod, time.monotonic()):
            raise _retry(web.HTTPTooManyRequests, wait, f"report at most every {1 / REPORTS_PER_SECOND:.0f} s: this report is dropped")
        report = _parse(await _body(request))
        self._progress.record(key, job, pod, report.trainer_status, self._now())
        self._notify(key)
        return web.json_response({"status": "ok"})

    async def _authorize(self, request: web.Request, key: tuple[str, str]) -> tuple[str, str]:
        """UIDs of the job and of the pod that reports, which works for it. Raises web.HTTPException."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthorized("send the pod's service account token as a bearer token")
        try:
            pod = await self._authenticator.pod(token.strip(), request.remote or "")
        except RefusedError as error:
            raise (_unauthorized(error.message) if error.status == 401 else web.HTTPForbidden(text=error.message)) from error
        except TooManyRefusalsError as error:
            raise _retry(web.HTTPTooManyRequests, error.wait, str(error)) from error
        except UnavailableError as error:
            raise _retry(web.HTTPServiceUnavailable, 5, "the API server cannot review the token now") from error
        job = self._job_of(*key, pod.name, pod.uid) if pod.namespace == key[0] else ""
        if not job:
            raise web.HTTPForbidden(text=f"pod {pod.namespace}/{pod.name} with UID {pod.uid} does not work for this FineTuneJob")
        return job, pod.uid


async def _body(request: web.Request) -> bytes:
    """The whole body. Raises web.HTTPException: 413 when it is too long, 408 when it does not come."""
    too_long = f"a progress report may have at most {MAX_BODY} bytes"
    if (request.content_length or 0) > MAX_BODY:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0, text=too_long)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:  # no length was given, or the body was compressed
        raise web.HTTPRequestEntityTooLarge(MAX_BODY, MAX_BODY, text=too_long) from error
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the report did not arrive within {BODY_SECONDS:.0f} s") from error


def _parse(body: bytes) -> ProgressReport:
    """The report. Raises web.HTTPException, which names the field and never repeats what was sent."""
    try:
        return ProgressReport.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise web.HTTPUnprocessableEntity(text=f"not a progress report: {f'{where}: ' if where else ''}{first['msg']}") from error


@web.middleware
async def _count(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    status = web.HTTPInternalServerError.status_code
    try:
        response = await handler(request)
        status = response.status
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        metrics.progress_reports.labels(status=str(status)).inc()
    return response


def health_app(ready: Callable[[], bool]) -> web.Application:
    """/healthz (the loop turns), /readyz (all caches are filled) and /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if ready() else web.Response(status=503, text="still reading the cluster's objects")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app


async def serve(app: web.Application, port: int, context: object = None) -> web.AppRunner:
    """Serve an application on all of the pod's addresses. Returns what has to be cleaned up at the end."""
    # A client that sends its request's head slowly counts as an idle one.
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_SECONDS, lingering_time=LINGER_SECONDS, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, port=port, ssl_context=context, reuse_address=True).start()  # type: ignore[arg-type]  # SSLContext or None
    return runner
