"""What decisions take and give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.jobstatus import FineTuneJobStatus, Progress
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus
from finetune_operator.observe import DeploymentView, JobView, NodeView, PodView, RouteView, WorkloadView
from finetune_runtime.contract.config import AdapterReport

from .faults import Fault

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EndpointView:
    """What a FineTuneJob sees of the endpoint that it deploys to."""

    owner_uid: str
    spec: ModelEndpointSpec
    status: ModelEndpointStatus


@dataclass(frozen=True, slots=True)
class JobState:
    """A FineTuneJob and what belongs to it."""

    owner: Owner
    spec: FineTuneJobSpec
    status: FineTuneJobStatus
    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    workloads: tuple[WorkloadView, ...] = ()
    nodes: tuple[NodeView, ...] | None = None  # those that have the GPUs asked for; None: not known
    live: bool = False  # Jobs and pods are as the API server says now, not as the caches remember
    ignore_fit: bool = False  # the annotation that overrides the estimate
    endpoint: EndpointView | None = None
    endpoint_fault: str = ""  # why the endpoint cannot be read
    progress: Progress | None = None
    conflicts: tuple[str, ...] = ()  # children whose names are taken by somebody else's objects
    refused: Mapping[str, str] = field(default_factory=dict)  # what the API server has against children, in its words, by their names
    ca: str = ""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A ModelEndpoint and what belongs to it."""

    owner: Owner
    spec: ModelEndpointSpec
    status: ModelEndpointStatus
    deployments: tuple[DeploymentView, ...] = ()
    pods: tuple[PodView, ...] = ()
    jobs: tuple[JobView, ...] = ()  # evaluations
    route: RouteView | None = None
    gateway_api: bool = True  # the API server knows HTTPRoutes; asked only where the strategy needs them
    live: bool = False  # all of them are as the API server says now, not as the caches remember
    conflicts: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    route_fault: Fault | None = None  # why the HTTPRoute is not as it is to be
    budget_fault: str = ""  # what the API server has against the PodDisruptionBudget
    blocked: str = ""  # what the API server has against an object that users depend on, in its words
    reports: Mapping[str, AdapterReport] = field(default_factory=dict)  # of pods that say what they serve, by their UIDs


@dataclass(frozen=True, slots=True)
class Ref:
    """An object to act on."""

    api_version: str
    kind: str
    name: str
    uid: str = field(default="", compare=False)  # delete this very object, not one that has taken its name since; empty: whichever there is


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. Applying a plan twice equals applying it once."""

    create: tuple[Body, ...] = ()  # made when missing, never changed afterwards
    apply: tuple[Body, ...] = ()  # server-side apply, ours alone
    propose: tuple[Body, ...] = ()  # server-side apply of one field of an object that others may own, by its own manager
    patch: tuple[tuple[Ref, Body], ...] = ()
    delete: tuple[Ref, ...] = ()
    untried: frozenset[str] = frozenset()  # names of objects that nobody depends on yet: that they are refused holds up nothing else
    look: bool = False  # decide again with Jobs and pods as they are now, before anything of this is done
    expire: bool = False  # delete the object itself
    status: Body = field(default_factory=dict)
    requeue_after: float | None = None
