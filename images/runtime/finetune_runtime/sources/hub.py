"""hf:// models, read from a Hugging Face compatible hub. HF_ENDPOINT names another hub, HF_TOKEN opens gated models."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec


def list_repository(spec: ModelSpec) -> tuple[str, list[tuple[str, int]]]:
    """(commit, [(path, size in bytes), ...]) of the model's repository at its revision."""
    with _online(spec):
        from huggingface_hub import HfApi

        found = HfApi().model_info(_repository(spec), revision=spec.revision or None, files_metadata=True)
    return found.sha or "", [(file.rfilename, file.size or 0) for file in found.siblings or []]


def download(spec: ModelSpec, revision: str, paths: Sequence[str], dest: Path) -> None:
    """Copies files of one commit into `dest`; an interrupted download goes on where it stopped."""
    if not paths:
        return
    with _online(spec):
        from huggingface_hub import snapshot_download

        snapshot_download(_repository(spec), revision=revision or spec.revision or None, allow_patterns=list(paths), local_dir=dest)


def _repository(spec: ModelSpec) -> str:
    return spec.source.removeprefix("hf://")


@contextmanager
def _online(spec: ModelSpec) -> Iterator[None]:
    """Lets the hub be used although the steps run with HF_HUB_OFFLINE=1, and gives its errors a cause and a cure."""
    offline = os.environ.pop("HF_HUB_OFFLINE", None)
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # the HTTP library that it uses, under a name that outlives a change of it

    constants.HF_HUB_OFFLINE = False  # the library reads the variable only when it is imported, which may be long ago
    at = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    try:
        yield
    except errors.GatedRepoError as error:
        raise _invalid(f"{spec.source} is gated: accept its licence on the hub and set spec.model.secretRef to a Secret with the key HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise _invalid(
            f"{spec.source} does not exist at {at}, or is private: check the name, or set spec.model.secretRef to a Secret with the key HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _invalid(f"{spec.source} has no revision {spec.revision!r}: set spec.model.revision to a branch, tag or commit of it.") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise StepError(
            Exit.STORAGE_UNAVAILABLE,
            Reason.STORAGE_UNAVAILABLE,
            f"The model hub {at} cannot be read ({type(error).__name__}): check HF_ENDPOINT and the network policies of the pod. In a cluster without "
            "access to a hub, copy the model to S3 or a volume and name it by s3:// or pvc://.",
        ) from error
    finally:
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline
        constants.HF_HUB_OFFLINE = offline == "1"


def _invalid(message: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND, message)
