"""Readable Hub errors; removal of damaged files from the cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hybridhash.hub.model_files import CONFIG, WEIGHTS

__all__ = ["damaged", "discard_damaged", "explained"]

_PICKLE = "pytorch_model.bin"  # what timm falls back to in a repository without safetensors
# The base class is that of the HTTP library: requests up to huggingface_hub 0.x, httpx since.
_FAILURES: tuple[type[Exception], ...] = (EntryNotFoundError, OSError, HfHubHTTPError.__mro__[1])


@contextmanager
def explained(
    repository: str | None, revision: str | None = None, cache_dir: str | Path | None = None
) -> Iterator[None]:
    """Turn failures of the Hub inside the block into errors that name the repository and what to do."""
    try:
        yield
    except _FAILURES as error:
        if repository is None:
            raise
        cause = _hidden_failure(error, repository, revision, cache_dir)
        raise _explanation(cause, repository, revision) from error


def _hidden_failure(
    error: Exception, repository: str, revision: str | None, cache_dir: str | Path | None
) -> Exception:
    """Return the failure that timm hides: when the safetensors fail, it reports a missing pickle instead."""
    if isinstance(error, EntryNotFoundError) and _PICKLE in str(error):
        try:
            hf_hub_download(repository, WEIGHTS, revision=revision, cache_dir=cache_dir)
        except _FAILURES as hidden:
            return hidden
        return ConnectionError("it works again")
    return error


def _explanation(error: Exception, repository: str, revision: str | None) -> OSError:
    """Return the error that a user sees for a failure of the Hub."""
    login = "log in with `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        url = f"{constants.ENDPOINT}/{repository}"
        return PermissionError(f"{repository} is gated: accept its conditions at {url}, then {login}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"the Hub has no repository {repository}, or a private one: check the name; if it is private, "
            f"{login}"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(
            f"{repository} has no revision {revision!r}: see its branches, tags and commits"
        )
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return ConnectionError(
            f"{repository} is not in the cache and HF_HUB_OFFLINE forbids a download: load it once without "
            "HF_HUB_OFFLINE, or copy its files and load that folder"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(
            f"{repository} lacks a file of a timm model ({CONFIG} and {WEIGHTS}): {_first_line(error)}"
        )
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return PermissionError(
            f"the Hub refuses {repository} ({_first_line(error)}): {login}, with a token that has the right"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{repository}: {error}")
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    return ConnectionError(
        f"the transfer of {repository} failed ({_first_line(cause)}): nothing half-done is kept, try again; "
        "if it lasts, check the connection and https://status.huggingface.co"
    )


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def damaged(repository: str) -> OSError:
    """Return the error for a download that :func:`discard_damaged` deleted."""
    return OSError(
        f"the download of {repository} was damaged and is deleted from the cache: load it again; if that "
        "fails too, the file in the repository is broken, so tell its owner"
    )


def discard_damaged(
    repository: str, revision: str | None, cache_dir: str | Path | None, *, all_files: bool = False
) -> bool:
    """Delete files from the cache that differ from the Hub's checksum; return whether there were any.

    Args:
        repository: ``"user/repo"``.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        all_files: Whether to delete the files of the model whatever their checksum.
    """
    blobs = set()
    for filename in (CONFIG, WEIGHTS, _PICKLE):
        path = try_to_load_from_cache(repository, filename, cache_dir=cache_dir, revision=revision)
        if isinstance(path, str) and (all_files or not _is_intact(Path(path).resolve())):
            blobs.add(Path(path).resolve())
    if blobs:
        cache = scan_cache_dir(cache_dir)
        # Of this repository only: a duplicate of it has the same commits.
        repos = {repo for repo in cache.repos if (repo.repo_type, repo.repo_id) == ("model", repository)}
        cache = replace(cache, repos=frozenset(repos))
        revisions = [
            cached.commit_hash
            for repo in repos
            for cached in repo.revisions
            if any(file.blob_path in blobs for file in cached.files)
        ]
        cache.delete_revisions(*revisions).execute()
    return bool(blobs)


def _is_intact(blob: Path) -> bool:
    """Return whether a cached file is what the Hub announced: large files are named by their SHA-256."""
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return True
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
