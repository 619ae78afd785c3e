"""What pods with live adapters say that they serve. Asked of the pods themselves, while a version is on its way into them."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from aiohttp import ClientError, ClientSession, ClientTimeout
from pydantic import ValidationError

from finetune_runtime.contract.config import ADAPTERS_PORT, AdapterReport

from .observe import PodView
from .plan.live import asks
from .plan.types import EndpointState

log = logging.getLogger(__name__)
TIMEOUT = 3.0  # seconds for one pod
AT_ONCE = 16
LONGEST = 256 * 1024  # bytes: a report on as many adapters as there can be is much shorter


class Sidecars:
    """Asks pods. One that does not answer says nothing, which is no error: it starts, or it ends."""

    async def of(self, seen: EndpointState) -> Mapping[str, AdapterReport]:
        """Reports by the UIDs of pods; of no pod while nothing is on its way."""
        host = asks(seen.status)
        return await self.ask([p for p in seen.pods if p.parent == host and (p.ready or p.running) and p.address]) if host else {}

    async def ask(self, pods: Iterable[PodView]) -> Mapping[str, AdapterReport]:
        """Reports of these pods, by their UIDs."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with ClientSession(timeout=ClientTimeout(total=TIMEOUT)) as session:

            async def one(pod: PodView) -> tuple[str, AdapterReport | None]:
                async with gate:
                    return pod.uid, await _report(session, pod)

            found = await asyncio.gather(*(one(pod) for pod in pods))
        return {uid: report for uid, report in found if report}


async def _report(session: ClientSession, pod: PodView) -> AdapterReport | None:
    host = f"[{pod.address}]" if ":" in pod.address else pod.address
    try:
        async with session.get(f"http://{host}:{ADAPTERS_PORT}/", allow_redirects=False) as response:
            if response.status != HTTPStatus.OK or not 0 < (response.content_length or 0) <= LONGEST:
                return None
            return AdapterReport.model_validate_json(await response.read())
    except (ClientError, TimeoutError, OSError, ValidationError) as error:
        log.debug("pod %s does not say what it serves: %s", pod.name, error)
        return None
