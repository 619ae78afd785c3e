"""Configuration of the operator process, from its environment (the chart writes it)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from finetune_runtime.contract.config import ALLOWED_CIDRS_ENV, STATUS_AUDIENCE


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decisions and builders need to know about the installation."""

    trainer_image: str
    inference_image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    allow_cpu: bool = False
    hub_endpoint: str = ""
    allowed_cidrs: tuple[str, ...] = ()
    watch_namespaces: tuple[str, ...] = ()
    status_url: str = ""
    status_port: int = 8443
    metrics_port: int = 8080
    log_format: str = "plain"
    audience: str = STATUS_AUDIENCE
    workers: int = 8
    progress_seconds: float = 10.0


class SettingsError(Exception):
    """The environment of the operator is incomplete or wrong."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integer(env: Mapping[str, str], key: str, default: int) -> int:
    try:
        return int(env.get(key, default))
    except ValueError as error:
        raise SettingsError(f"{key}={env[key]!r} is not a whole number") from error


def _networks(env: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(text)) for text in _names(env.get(key, "")))
    except ValueError as error:
        raise SettingsError(f"{key}: {error}; write networks as 10.1.0.0/16, separated by commas") from error


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """Settings from environment variables. Raises SettingsError with the name of the variable and the cure."""
    missing = [key for key in ("FINETUNE_TRAINER_IMAGE", "FINETUNE_INFERENCE_IMAGE") if not env.get(key)]
    if missing:
        raise SettingsError(f"{' and '.join(missing)} not set: name the images to run, as the chart's Deployment does")
    return Settings(
        trainer_image=env["FINETUNE_TRAINER_IMAGE"],
        inference_image=env["FINETUNE_INFERENCE_IMAGE"],
        pull_policy=env.get("FINETUNE_IMAGE_PULL_POLICY") or "IfNotPresent",
        pull_secrets=_names(env.get("FINETUNE_IMAGE_PULL_SECRETS", "")),
        allow_cpu=env.get("FINETUNE_ALLOW_CPU", "").lower() == "true",
        hub_endpoint=env.get("FINETUNE_HUB_ENDPOINT", "").rstrip("/"),
        allowed_cidrs=_networks(env, ALLOWED_CIDRS_ENV),
        watch_namespaces=_names(env.get("FINETUNE_WATCH_NAMESPACES", "")),
        status_url=env.get("FINETUNE_STATUS_URL", "").rstrip("/"),
        status_port=_integer(env, "FINETUNE_STATUS_PORT", 8443),
        metrics_port=_integer(env, "FINETUNE_METRICS_PORT", 8080),
        log_format=env.get("FINETUNE_LOG_FORMAT") or "plain",
        workers=_integer(env, "FINETUNE_WORKERS", 8),
    )
