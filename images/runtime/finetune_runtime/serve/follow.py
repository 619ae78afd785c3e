"""Sidecar of a pod in which adapters come and go: brings what the engine serves to what the configuration wants, again and again.

It has what the engine must not have: the keys of the storage. The kubelet carries changes of the configuration into the pod. Nothing is
remembered that could be wrong: after a restart of the engine or of the sidecar, what the engine lists decides what is to be done.
"""

import http.client
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import ADAPTERS_PORT, CONFIG_PATH, SCRATCH_DIR, SERVING_PORT, AdapterReport, AdapterState, NamedAdapter, ServeConfig
from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.s3.store import Store

from . import command, fetch, parity, ready
from .engine import Engine, EngineRefusesError

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between two looks
FIRST_PAUSE, LAST_PAUSE = 2.0, 60.0  # seconds before what failed is tried again
# Seconds that an adapter stays on disk when nothing wants it any more: the engine may have to read it again for a request that runs.
KEEP = 3600.0
NOT_ANSWERING = (OSError, http.client.HTTPException, ValueError, KeyError)


@dataclass(slots=True)
class _Fault:
    """Why an adapter is not served yet under a name."""

    message: str
    final: bool
    pause: float
    again: float  # on the clock


@dataclass
class Follower:
    """`now`: a clock in seconds. `read`: the configuration as it is now."""

    read: Callable[[], ServeConfig]
    scratch: Path
    engine: Engine
    now: Callable[[], float] = time.monotonic
    _faults: dict[tuple[str, str], _Fault] = field(default_factory=dict)
    _proven: dict[str, str] = field(default_factory=dict)  # directories by the names under which they have answered
    _fetching: dict[str, "Future[None]"] = field(default_factory=dict)  # by the digest of the adapter
    _unwanted: dict[Path, float] = field(default_factory=dict)  # since when
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))  # a fetch takes minutes, and names must not wait for it

    def round(self) -> None:
        """Do what can be done now."""
        config = self.read()
        wanted = _wanted(config)
        served = self._served()
        for named in wanted:
            self._bring(config, named, served)
        for name in (served or {}).keys() - {named.name for named in wanted}:
            self.engine.cease(name)
            self._proven.pop(name, None)
            log.info("%s is not served any more", name)
        keys = {(named.name, named.adapter.manifest_sha256) for named in wanted}
        self._faults = {key: fault for key, fault in self._faults.items() if key in keys}
        self._clear({fetch.live_directory(self.scratch, named.adapter) for named in wanted})

    def report(self) -> AdapterReport:
        """What is wanted, and what the engine says at this moment that it serves."""
        served = self._served() or {}
        return AdapterReport(adapters=[self._state(named, served) for named in _wanted(self.read())])

    def _state(self, named: NamedAdapter, served: dict[str, str]) -> AdapterState:
        name, sha, directory = named.name, named.adapter.manifest_sha256, str(fetch.live_directory(self.scratch, named.adapter))
        if served.get(name) == self._proven.get(name) == directory:
            return AdapterState(name=name, manifest_sha256=sha, state="Served")
        fault = self._faults.get((name, sha))
        if fault:
            return AdapterState(name=name, manifest_sha256=sha, state="Refused" if fault.final else "Waiting", message=fault.message)
        return AdapterState(name=name, manifest_sha256=sha, state="Waiting", message="it is fetched" if sha in self._fetching else "the engine is to load it")

    def _served(self) -> dict[str, str] | None:
        """What the engine lists; None while it does not answer."""
        try:
            return self.engine.served()
        except NOT_ANSWERING:
            return None

    def _bring(self, config: ServeConfig, named: NamedAdapter, served: dict[str, str] | None) -> None:
        """An adapter nearer to its name: fetched, loaded, proven."""
        name, directory = named.name, str(fetch.live_directory(self.scratch, named.adapter))
        key = (name, named.adapter.manifest_sha256)
        if (served or {}).get(name) == self._proven.get(name) == directory:
            self._faults.pop(key, None)
            return
        if (fault := self._faults.get(key)) and self.now() < fault.again:
            return
        try:
            if not self._is_here(config, named) or served is None:
                return
            if served.get(name) != directory:
                self._proven.pop(name, None)
                self.engine.serve(name, directory)
            ready.prove(name, self.engine.port, parity.samples(Path(directory)))
        except StepError as error:
            self._failed(key, error.message, final=error.code == Exit.INVALID_CONFIG)
        except parity.PromptDiffersError as error:
            self._failed(key, str(error), final=True)
        except EngineRefusesError as error:
            cure = "set spec.maxLoraRank, which starts new pods, or train it with a smaller rank" if "rank" in str(error) else "train it again"
            self._failed(key, f"the engine does not load {named.adapter.uri}: {error}: {cure}", final=True)
        except (*NOT_ANSWERING, ready.NotReadyError) as error:
            self._failed(key, f"the engine does not answer, which container main has the log of: {error or type(error).__name__}", final=False)
        else:
            self._proven[name] = directory
            self._faults.pop(key, None)
            log.info("%s is %s", name, named.adapter.uri)

    def _is_here(self, config: ServeConfig, named: NamedAdapter) -> bool:
        """Whether an adapter is on disk as a whole; else its fetch goes on. Raises StepError for what it came to."""
        sha = named.adapter.manifest_sha256
        if fetch.live_manifest(self.scratch, named.adapter).exists():
            return True
        if (running := self._fetching.get(sha)) is None:
            self._fetching[sha] = self._pool.submit(self._fetch, config, named)
        elif running.done():
            del self._fetching[sha]
            running.result()
        return False

    def _fetch(self, config: ServeConfig, named: NamedAdapter) -> None:
        """Cheap checks come before the download, as in the init container."""
        store = Store(config.storage)
        found = artefacts.load_adapter(store, named.adapter.uri)
        command.check_served(config.model_copy(update={"served_name": named.name, "adapter": named.adapter}), found)
        first = Manifest.model_validate_json((self.scratch / fetch.MANIFEST).read_bytes())
        command.check_together(config.model_copy(update={"others": [named]}), [first, found])
        fetch.fetch_live(self.scratch, store, named.adapter, found)

    def _failed(self, key: tuple[str, str], message: str, *, final: bool) -> None:
        before = self._faults.get(key)
        pause = min(LAST_PAUSE, 2 * before.pause) if before else FIRST_PAUSE
        self._faults[key] = _Fault(message, final, pause, self.now() + pause)
        log.warning("%s is not served, next try in %.0f s: %s", key[0], pause, message)

    def _clear(self, wanted: set[Path]) -> None:
        """Adapters that nothing has wanted for long make room; the one that the engine has its chat template from stays."""
        kept = wanted | {(self.scratch / fetch.ADAPTER).resolve()}
        there = [path for path in (self.scratch / ready.ADAPTERS).glob("*") if path.is_dir()]
        self._unwanted = {path: self._unwanted.get(path, self.now()) for path in there if path not in kept and path.resolve() not in kept}
        for path, since in self._unwanted.items():
            if self.now() - since >= KEEP:
                path.with_suffix(".json").unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)


def _wanted(config: ServeConfig) -> list[NamedAdapter]:
    """What users ask comes first."""
    return [*config.adapters, *((config.live.trial if config.live else None) or ())]


def run() -> NoReturn:
    """Goes on for as long as the pod lives: whatever is wrong in one round is tried again in the next one."""
    path = Path(os.environ.get("FINETUNE_CONFIG", CONFIG_PATH))
    scratch = Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR))
    follower = Follower(lambda: ServeConfig.model_validate_json(path.read_bytes()), scratch, Engine(SERVING_PORT))
    server = ThreadingHTTPServer(("", ADAPTERS_PORT), _handler(follower))  # who may reach it is the network policy's matter
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        try:
            follower.round()
        except Exception:
            log.exception("a round failed in a way that it should not; the next one tries again")
            time.sleep(FIRST_PAUSE)
        time.sleep(PERIOD)


def _handler(follower: Follower) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a request to come

        def do_GET(self) -> None:
            body = json.dumps(follower.report().dump()).encode()
            self.send_response(http.client.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
            """Not a line for each look of the operator."""

    return Handler
