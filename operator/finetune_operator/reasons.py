"""Reasons of conditions, in one enum; what pods report (contract.result.Reason) is copied as it is."""

from enum import StrEnum


class Reason(StrEnum):
    """CamelCase causes that the operator itself states."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    PENDING = "Pending"
    RUNNING = "Running"
    STARTING = "Starting"
    COMPLETED = "Completed"
    WAITING_FOR_DATA = "WaitingForData"
    WAITING_FOR_ENDPOINT = "WaitingForEndpoint"
    RETRYING = "Retrying"
    SUSPENDED = "Suspended"
    NOT_SUSPENDED = "NotSuspended"
    SUSPENDING = "Suspending"
    UNSCHEDULABLE = "Unschedulable"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105  a reason, not a secret
    VOLUME_NOT_FOUND = "VolumeNotFound"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    POD_FAILED = "PodFailed"
    JOB_DELETED = "JobDeleted"
    RESULT_LOST = "ResultLost"
    DEPLOYED = "Deployed"
    NO_VERSION = "NoVersion"
    READY = "Ready"
    SCALED_TO_ZERO = "ScaledToZero"
    ROLLING_OUT = "RollingOut"
    UP_TO_DATE = "UpToDate"
    CRASH_LOOP = "CrashLoop"
    FETCH_FAILED = "FetchFailed"
