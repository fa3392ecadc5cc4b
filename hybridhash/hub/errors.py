"""Readable Hub errors; removal of corrupt cache entries."""

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

__all__ = ["CARD", "CONFIG", "WEIGHTS", "damaged", "discard_damaged", "explained"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_PICKLE = "pytorch_model.bin"  # what timm falls back to in a repository without safetensors
# With the HTTP library's own errors: requests up to huggingface_hub 0.x, httpx since.
_FAILURES: tuple[type[Exception], ...] = (EntryNotFoundError, OSError, HfHubHTTPError.__mro__[1])


@contextmanager
def explained(
    repository: str | None, revision: str | None = None, cache_dir: str | Path | None = None
) -> Iterator[None]:
    """Turn failures of the Hub into errors that name the repository and what to do."""
    try:
        yield
    except _FAILURES as error:
        if repository is None:
            raise
        raise _explanation(
            _uncovered(error, repository, revision, cache_dir), repository, revision
        ) from error


def _uncovered(
    error: Exception, repository: str, revision: str | None, cache_dir: str | Path | None
) -> Exception:
    """Return the error that timm hides when it reports a missing pickle after a failed safetensors."""
    if isinstance(error, EntryNotFoundError) and _PICKLE in str(error):
        try:
            hf_hub_download(repository, WEIGHTS, revision=revision, cache_dir=cache_dir)
        except _FAILURES as hidden:
            return hidden
        return ConnectionError("it works again")
    return error


def _explanation(error: Exception, repository: str, revision: str | None) -> OSError:
    """Return an error that names the repository and says what to do."""
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
    """Return the error for a download that was damaged."""
    return OSError(
        f"the download of {repository} was damaged and is deleted from the cache: load it again; if that "
        "fails too, the file in the repository is broken, so tell its owner"
    )


def discard_damaged(
    repository: str, revision: str | None, cache_dir: str | Path | None, *, all_files: bool = False
) -> bool:
    """Delete damaged files, or all, of a repository from the cache; return whether there were any."""
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
    """Return whether a cached file has the SHA-256 that the Hub names large files by."""
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return True
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
