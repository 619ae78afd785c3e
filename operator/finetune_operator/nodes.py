"""The nodes that offer GPUs, read when a training has to be compared with them. Nothing else of a cluster's nodes is looked at."""

import logging
from collections.abc import Callable

from .kube import ApiError, Cluster
from .names import memory_label
from .observe import NodeView, node_view
from .plan.types import Ref

log = logging.getLogger(__name__)
KEPT = 30.0  # seconds; many jobs may ask at the same time


class Nodes:
    """Nodes with a GPU memory label. They are listed when needed, because a watch would bring every heartbeat of every node."""

    def __init__(self, cluster: Cluster, now: Callable[[], float]) -> None:
        self._cluster, self._now = cluster, now
        self._known: dict[str, tuple[float, tuple[NodeView, ...] | None]] = {}

    async def offering(self, resource: str) -> tuple[NodeView, ...] | None:
        """Nodes that tell how large their GPUs of this extended resource are; None when we may not look."""
        since, found = self._known.get(resource, (float("-inf"), None))
        if not 0 <= self._now() - since < KEPT:
            try:
                raw = await self._cluster.list(Ref("v1", "Node", ""), None, memory_label(resource))
                found = tuple(node_view(node, resource) for node in raw)
            except ApiError as error:
                if error.status != 403:
                    raise
                log.info("nodes cannot be read, so only spec.resources.gpuMemory tells the size of GPUs: %s", error)
                found = None
            self._known[resource] = (self._now(), found)
        return found
