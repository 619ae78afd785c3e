"""Repositories of a Hugging Face compatible hub. HF_ENDPOINT names another hub, HF_TOKEN opens gated and private ones."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from finetune_runtime.contract.result import Exit, Reason, StepError

from .content import GIT, SHA256, RemoteFile
from .transfer import Part, Read


@dataclass(frozen=True)
class Repository:
    """A repository at a revision. `source`: the URI that its user knows it by; `revision`: branch, tag or commit, empty for main."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str
    source: str


def list_repository(repository: Repository) -> tuple[str, list[RemoteFile]]:
    """Commit and files of the repository at its revision."""
    with _online(repository):
        from huggingface_hub import HfApi

        found = HfApi().repo_info(repository.name, repo_type=repository.kind, revision=repository.revision or None, files_metadata=True)
    commit = found.sha or ""
    listed = [file for file in found.siblings or [] if _inside(file.rfilename)]
    return commit, [RemoteFile(file.rfilename, file.size or 0, _digest(file), commit) for file in listed]


def download(repository: Repository, commit: str, paths: Sequence[str], dest: Path) -> None:
    """Copies files of one commit into `dest`, streamed."""
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


@contextmanager
def reading(repository: Repository, commit: str) -> Iterator[Read]:
    """Gives a function that reads files of one commit from any byte on, for several threads at once."""
    with _online(repository):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, not of a compressed answer

        def read(file: RemoteFile, start: int, part: Part) -> None:
            url = hf_hub_url(repository.name, file.path, repo_type=repository.kind, revision=commit or repository.revision or None)
            http_get(url, part, resume_size=start, headers=headers, expected_size=file.size, displayed_filename=file.path)

        yield read


def _digest(file: Any) -> str:
    """The hub knows large files by their SHA-256 and small ones by git's name of their content."""
    if file.lfs:
        return f"{SHA256}:{file.lfs.sha256}"
    return f"{GIT}:{file.blob_id}" if file.blob_id else ""


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
