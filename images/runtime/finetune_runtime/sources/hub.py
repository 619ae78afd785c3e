"""Repositories of a Hugging Face compatible hub. HF_ENDPOINT names another hub, HF_TOKEN opens gated and private ones."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Literal

from finetune_runtime.contract.result import Exit, Reason, StepError


@dataclass(frozen=True)
class Repository:
    """A repository at a revision. `source`: the URI that its user knows it by; `revision`: branch, tag or commit, empty for main."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str
    source: str


def list_repository(repository: Repository) -> tuple[str, list[tuple[str, int]]]:
    """(commit, [(path, size in bytes), ...]) of the repository at its revision."""
    with _online(repository):
        from huggingface_hub import HfApi

        found = HfApi().repo_info(repository.name, repo_type=repository.kind, revision=repository.revision or None, files_metadata=True)
    files = [(file.rfilename, file.size or 0) for file in found.siblings or []]
    return found.sha or "", [(path, size) for path, size in files if _inside(path)]


def download(repository: Repository, commit: str, paths: Sequence[str], dest: Path) -> None:
    """Copies files of one commit into `dest`, streamed; an interrupted download goes on where it stopped."""
    if not paths:
        return
    with _online(repository):
        from huggingface_hub import snapshot_download

        snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=commit or repository.revision or None,
            allow_patterns=[escape(path) for path in paths],
            local_dir=dest,
        )


def _inside(path: str) -> bool:
    """False for a path that would be written outside its directory: the hub is believed about data, not about where that goes."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


@contextmanager
def _online(repository: Repository) -> Iterator[None]:
    """Lets the hub be used although the steps run with HF_HUB_OFFLINE=1, and gives its errors a cause and a cure."""
    offline = os.environ.pop("HF_HUB_OFFLINE", None)
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # the HTTP library that it uses, under a name that outlives a change of it

    constants.HF_HUB_OFFLINE = False  # the library reads the variable only when it is imported, which may be long ago
    at = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    source, token = repository.source, "set spec.model.secretRef to a Secret with the key HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _refused(repository, f"{source} is gated: accept its licence on the hub and {token}.") from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(repository, f"{source} does not exist at {at}, or is private: check the name, or {token}.") from error
    except errors.RevisionNotFoundError as error:
        raise _refused(repository, f"{source} has no revision {repository.revision!r}: {_REVISION_CURE[repository.kind]}.") from error
    except (errors.DisabledRepoError, errors.HFValidationError) as error:
        raise _refused(repository, f"{source} is not a repository that the hub gives out: check the name, and its page at {at}.") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise StepError(
            Exit.STORAGE_UNAVAILABLE,
            Reason.STORAGE_UNAVAILABLE,
            f"The hub {at} cannot be read ({type(error).__name__}) for {source}: check HF_ENDPOINT and the network policies of the pod. In a cluster "
            f"without access to a hub, copy the {repository.kind} to S3 or a volume and name it by s3:// or pvc://.",
        ) from error
    finally:
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline
        constants.HF_HUB_OFFLINE = offline == "1"


_REVISION_CURE = {
    "model": "set spec.model.revision to a branch, tag or commit of it",
    "dataset": "end the source with @ and a branch, tag or commit of it",
}


def _refused(repository: Repository, message: str) -> StepError:
    if repository.kind == "model":
        return StepError(Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND, message)
    return StepError(Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND, message)
