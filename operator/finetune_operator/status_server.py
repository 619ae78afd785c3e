"""HTTP servers of the operator: progress reports over TLS, and health and metrics in plain HTTP."""

import hashlib
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from finetune_runtime.contract.result import ProgressReport

from . import metrics
from .kube import ApiError, Cluster
from .progress import ProgressStore

MAX_BODY = 64 * 1024
TOKEN_TTL = 60.0  # seconds for which an accepted token is not reviewed again
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"


class StatusServer:
    """Takes progress reports. A pod may only report on the job that it works for."""

    def __init__(
        self,
        cluster: Cluster,
        audience: str,
        progress: ProgressStore,
        is_worker: Callable[[str, str, str, str], bool],
        notify: Callable[[tuple[str, str]], None],
    ) -> None:
        """`is_worker(namespace, job, pod name, pod uid)` tells whether a pod belongs to a job; `notify` hears of each report."""
        self._cluster, self._audience, self._progress = cluster, audience, progress
        self._is_worker, self._notify = is_worker, notify
        self._tokens: dict[str, tuple[float, tuple[str, str, str]]] = {}

    def app(self) -> web.Application:
        """The application behind TLS."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_count])
        app.router.add_post("/v1alpha1/namespaces/{namespace}/finetunejobs/{name}/status", self._report)
        return app

    async def _identity(self, token: str) -> tuple[str, str, str]:
        """(namespace, pod name, pod UID) of a token that was issued for us and is bound to a pod."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        now = time.monotonic()
        self._tokens = {k: v for k, v in self._tokens.items() if v[0] > now}
        if known := self._tokens.get(digest):
            return known[1]
        try:
            review = await self._cluster.review_token(token, self._audience)
        except ApiError as error:
            raise web.HTTPServiceUnavailable(text=f"the token cannot be reviewed now: {error}") from error
        user = review.get("user") or {}
        extra = user.get("extra") or {}
        account = str(user.get("username", "")).split(":")
        if not review.get("authenticated") or self._audience not in (review.get("audiences") or []):
            raise web.HTTPUnauthorized(text="the bearer token is not valid here: project a service account token with our audience")
        if account[:2] != ["system", "serviceaccount"] or not extra.get(POD_NAME):
            raise web.HTTPForbidden(text="only a pod's own service account token may report progress")
        found = (account[2], extra[POD_NAME][0], (extra.get(POD_UID) or [""])[0])
        self._tokens[digest] = (now + TOKEN_TTL, found)
        return found

    async def _report(self, request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise web.HTTPUnauthorized(text="send the pod's service account token as a bearer token")
        namespace, pod, uid = await self._identity(token.strip())
        if namespace != key[0] or not self._is_worker(*key, pod, uid):
            raise web.HTTPForbidden(text=f"pod {namespace}/{pod} does not work for FineTuneJob {key[0]}/{key[1]}")
        try:
            report = ProgressReport.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        self._progress.record(key, pod, report.trainer_status, time.time())
        self._notify(key)
        return web.json_response({"status": "ok"})


@web.middleware
async def _count(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        metrics.progress_reports.labels(status=str(error.status)).inc()
        raise
    metrics.progress_reports.labels(status=str(response.status)).inc()
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
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port, ssl_context=context, reuse_address=True).start()  # type: ignore[arg-type]  # SSLContext or None
    return runner
