"""The Kubernetes API as this operator uses it. The only module that knows the client library."""

import json
import logging
from typing import Any

from aiohttp import ClientError
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import ConflictError, DynamicApiError, ForbiddenError, NotFoundError

from . import metrics
from .plan.types import Body, Ref

log = logging.getLogger(__name__)
TIMEOUT = 30  # seconds for one request
_REFUSED = (400, 422)
UNDECLARED = "field not declared in schema"  # in the API server's words
ANOTHER = "metadata.uid: Invalid value"  # likewise: an object of that name exists, and is not the one whose UID was applied


class ApiError(Exception):
    """A request failed; trying again may help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status, self.message = status, message


class RefusedError(ApiError):
    """The API server, or an admission webhook, does not take a request as it is: trying again helps only when something else has changed."""


class AlreadyExistsError(ApiError):
    """An object of that name exists."""


class StaleError(ApiError):
    """The object has changed since it was read: what was decided on it has to be decided again."""


class GoneError(ApiError):
    """The object that was meant does not exist any more, or is another one of the same name, or its namespace is going."""


def _reason(error: DynamicApiError) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _conflict(reason: str) -> ApiError:
    if "already exists" in reason:
        return AlreadyExistsError(409, reason)
    if "UID in " in reason or "uid mismatch" in reason:  # no name of an object reads like this
        return GoneError(409, reason)
    return (StaleError if "has been modified" in reason else ApiError)(409, reason)


async def login() -> client.ApiClient:
    """API client with the pod's service account, or with the kubeconfig of the environment."""
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    return client.ApiClient()


class Cluster:
    """Few verbs on plain dicts. Raises ApiError and its kinds; never the client library's errors."""

    def __init__(self, dynamic: DynamicClient) -> None:
        self._dynamic = dynamic

    @classmethod
    async def connect(cls) -> "Cluster":
        """Cluster of this process."""
        return cls(await DynamicClient(await login()))

    async def _call(self, verb: str, ref: Ref, namespace: str | None, *, subresource: str = "", **kwargs: Any) -> Body:
        try:
            answer = await self._request(verb, ref, namespace, subresource=subresource, **kwargs)
        except ApiError as error:
            metrics.api_request(verb, ref.kind, error.status)
            raise
        metrics.api_request(verb, ref.kind)
        return answer

    async def _request(self, verb: str, ref: Ref, namespace: str | None, *, subresource: str, **kwargs: Any) -> Body:
        try:
            resource = await self._dynamic.resources.get(api_version=ref.api_version, kind=ref.kind)
            target = resource.subresources[subresource] if subresource else resource
            answer = await getattr(self._dynamic, verb)(target, namespace=namespace, _request_timeout=TIMEOUT, **kwargs)
        except NotFoundError as error:
            raise GoneError(404, _reason(error)) from error
        except ConflictError as error:
            raise _conflict(_reason(error)) from error
        except ForbiddenError as error:
            gone = "is being terminated" in _reason(error)
            raise (GoneError if gone else RefusedError)(403, _reason(error)) from error
        except DynamicApiError as error:
            kind = GoneError if ANOTHER in _reason(error) else RefusedError if error.status in _REFUSED else ApiError
            raise kind(error.status or 0, _reason(error)) from error
        except (ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__} {error}") from error
        result: Body = answer.to_dict()
        return result

    async def get(self, ref: Ref, namespace: str) -> Body | None:
        """An object; None when there is none."""
        try:
            return await self._call("get", ref, namespace, name=ref.name)
        except GoneError:
            return None

    async def list(self, ref: Ref, namespace: str | None, selector: str) -> list[Body]:
        """Objects of a kind as they are now, past any cache. `ref.name` is not used; `namespace` None: all of them."""
        answer = await self._call("get", ref, namespace, label_selector=selector)
        found: list[Body] = answer.get("items") or []
        return found

    async def create(self, body: Body) -> Body:
        """Create. Raises AlreadyExistsError."""
        return await self._call("create", ref_of(body), body["metadata"].get("namespace"), body=body)

    async def apply(self, body: Body, manager: str) -> Body:
        """Server-side apply; the fields in `body` become ours."""
        return await self._call("server_side_apply", ref_of(body), body["metadata"]["namespace"], body=body, field_manager=manager, force_conflicts=True)

    async def apply_status(self, ref: Ref, namespace: str, resource_version: str, status: Body, manager: str) -> Body:
        """Server-side apply of a whole status to an object as it was read. Raises StaleError when it has changed since, or is another one of the same name."""
        # The API server looks at no UID in a status that is applied (v1.37): only the resource version keeps it off a successor.
        meta = {"name": ref.name, "namespace": namespace, "resourceVersion": resource_version}
        body = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": meta, "status": status}
        try:
            return await self._call(
                "server_side_apply", ref, namespace, subresource="status", body=body, name=ref.name, field_manager=manager, force_conflicts=True
            )
        except ApiError as error:
            if UNDECLARED not in str(error):
                raise
            log.warning("the CustomResourceDefinition of %s is older than this operator, apply that of its version: %s", ref.kind, error)
            # Server-side apply refuses fields that the CRD does not have; this drops them.
            change = [{"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version}, {"op": "add", "path": "/status", "value": status}]
            return await self._call("patch", ref, namespace, subresource="status", name=ref.name, body=change, content_type="application/json-patch+json")

    async def patch(self, ref: Ref, namespace: str, body: Body) -> None:
        """JSON merge patch. An object that is gone is left alone."""
        try:
            await self._call("patch", ref, namespace, name=ref.name, body=body, content_type="application/merge-patch+json")
        except GoneError:
            return

    async def delete(self, ref: Ref, namespace: str, uid: str = "") -> None:
        """Delete with everything it owns, if it is still the object of that UID. An object that is gone is fine."""
        options = {"propagationPolicy": "Background", **({"preconditions": {"uid": uid}} if uid else {})}
        try:
            await self._call("delete", ref, namespace, name=ref.name, body=options)
        except GoneError:
            return

    async def serves(self, api_version: str, plural: str) -> bool:
        """Whether the API server has a kind now; what was discovered before is not asked."""
        group, version = api_version.split("/")
        try:
            answer = await self._dynamic.request("get", f"/apis/{group}/{version}", _request_timeout=TIMEOUT)
        except NotFoundError:
            return False
        except (DynamicApiError, ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__} {error}") from error
        return any(found["name"] == plural for found in answer.to_dict()["resources"])

    async def review_token(self, token: str, audience: str) -> Body:
        """Status of a TokenReview: authenticated, user (username, uid, groups, extra)."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]}}
        answer = await self._call("create", ref_of(body), None, body=body)
        status: Body = answer.get("status") or {}
        return status


def ref_of(body: Body) -> Ref:
    """Reference to an object."""
    return Ref(body["apiVersion"], body["kind"], (body.get("metadata") or {}).get("name", ""))
