"""What the operator's writes do on a real API server when the object is not the one any more that was read."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kubernetes.aio import config
from kubernetes.aio.dynamic import DynamicClient

from finetune_operator.api import API_VERSION
from finetune_operator.kube import Cluster, GoneError, StaleError
from finetune_operator.names import FIELD_MANAGER
from finetune_operator.plan.types import Body, Ref
from tests.integration.operator_process import Namespace
from tests.integration.test_endpoint import endpoint

SUPPORT = Ref(API_VERSION, "ModelEndpoint", "support")
STATUS = {"reason": "UpToDate"}


@pytest.fixture
async def api(operator_kubeconfig: Path) -> AsyncIterator[Cluster]:
    """The API server with the operator's own account."""
    connection = await config.new_client_from_config(str(operator_kubeconfig))
    yield Cluster(await DynamicClient(connection))
    await connection.close()


async def _write(cluster: Cluster, read: Body) -> Body:
    return await cluster.apply_status(SUPPORT, read["metadata"]["namespace"], read["metadata"]["resourceVersion"], STATUS, FIELD_MANAGER)


async def test_a_status_never_lands_on_an_object_that_was_made_anew_under_the_same_name(api: Cluster, here: Namespace) -> None:
    here.apply(endpoint())
    predecessor = here.get("modelendpoint", "support")
    here.rest.delete("modelendpoint", "support")
    with pytest.raises(GoneError):
        await _write(api, predecessor)
    here.apply(endpoint())
    with pytest.raises(StaleError):
        await _write(api, predecessor)
    assert here.get("modelendpoint", "support")["status"] == {"observedGeneration": -1}


async def test_a_status_is_written_only_on_the_spec_that_it_was_decided_on(api: Cluster, here: Namespace) -> None:
    here.apply(endpoint())
    read = here.get("modelendpoint", "support")
    here.rest.merge("modelendpoint", "support", {"spec": {"replicas": 2}})
    with pytest.raises(StaleError):
        await _write(api, read)
    written = await _write(api, here.get("modelendpoint", "support"))
    assert written["status"]["reason"] == "UpToDate"
    assert (await _write(api, written))["status"] == written["status"], "what was written is newer than what was read"


async def test_an_object_whose_name_reads_like_a_message_is_stale_too(api: Cluster, here: Namespace) -> None:
    named = endpoint() | {"metadata": {"name": "uid"}}
    here.apply(named)
    read = here.get("modelendpoint", "uid")
    here.rest.merge("modelendpoint", "uid", {"spec": {"replicas": 2}})
    with pytest.raises(StaleError):
        await api.apply_status(Ref(API_VERSION, "ModelEndpoint", "uid"), here.rest.namespace, read["metadata"]["resourceVersion"], STATUS, FIELD_MANAGER)


async def test_a_child_that_was_made_anew_since_it_was_read_is_gone_and_not_refused(api: Cluster, here: Namespace) -> None:
    body: Body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": here.rest.namespace}, "data": {"a": "1"}}
    read = await api.apply(body, FIELD_MANAGER)
    exactly = {**body, "metadata": {**body["metadata"], "uid": read["metadata"]["uid"]}}
    await api.apply(exactly, FIELD_MANAGER)
    here.rest.delete("configmap", "settings")
    with pytest.raises(GoneError):
        await api.apply(exactly, FIELD_MANAGER)
    await api.apply(body, FIELD_MANAGER)
    with pytest.raises(GoneError):
        await api.apply(exactly, FIELD_MANAGER)
    here.rest.delete("configmap", "settings")
