"""Weights from the Hub: where timm takes them from, readable errors, no damaged file left in the cache."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import timm
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from hybridhash._files import locked
from hybridhash._fingerprint import file_sha256

__all__ = ["CONFIG", "WEIGHTS", "explained", "hub_source", "loading", "split_revision"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PICKLE = "pytorch_model.bin"  # what timm falls back to in a repository without safetensors
_FILES = (CONFIG, WEIGHTS, _PICKLE, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The base class is that of the HTTP library: requests up to huggingface_hub 0.x, httpx since.
_FAILURES: tuple[type[Exception], ...] = (EntryNotFoundError, OSError, HfHubHTTPError.__mro__[1])
_UNLOADABLE = (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError)


def hub_source(name: str) -> tuple[str | None, str | None]:
    """Return the repository and the revision from which timm downloads a model, or None for either.

    Args:
        name: A registered model, with or without tag, ``"hf-hub:user/repo@revision"`` or ``"local-dir:..."``.

    Raises:
        ValueError: The model has no such tag.
    """
    scheme, _, hub_id = name.partition(":")
    if scheme in ("hf-hub", "hf_hub"):
        return split_revision(hub_id)
    if scheme == "local-dir":
        return None, None
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ValueError(f"unknown tag in {name!r}: there is {tags}") from error
    return split_revision(cfg.hf_hub_id) if cfg is not None and cfg.hf_hub_id else (None, None)


def split_revision(hub_id: str) -> tuple[str, str | None]:
    """Return the repository and the revision of ``"user/repo@revision"``."""
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


@contextmanager
def loading(
    label: str,
    repository: str | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Iterator[None]:
    """Turn failures of timm to load a model inside the block into errors that name it and what to do.

    Files from the Hub are compared with the SHA-256 that the Hub gave for them. Damaged files are deleted
    from the cache, so that the next attempt fetches them again. A lock keeps them there while another process
    loads the same repository: what a process has compared is what it has loaded.

    Args:
        label: What errors call the model.
        repository: ``"user/repo"`` if the weights come from the Hub, else None.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
    """
    failure: Exception | None = None
    damaged = False
    unreadable = False
    with _cache_lock(repository, cache_dir, shared=True):
        try:
            with explained(repository, revision, cache_dir):
                yield
        except _UNLOADABLE as error:
            if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
                raise  # out of memory, and the like
            if isinstance(error, HFValidationError):
                raise ValueError(f"{label!r} names no repository: {error}") from error
            failure = error
            unreadable = isinstance(error, (SafetensorError, json.JSONDecodeError))
        if repository:
            blobs = [blob for _, blob in _cached(repository, revision, cache_dir)]
            damaged = unreadable or not all(map(_is_intact, blobs))
    if repository and damaged:
        with _cache_lock(repository, cache_dir):
            _discard_damaged(repository, revision, cache_dir, all_files=unreadable)
        raise OSError(
            f"the download of {repository} was damaged and is deleted from the cache: load it again; if "
            "that fails too, the file in the repository is broken, so tell its owner"
        ) from failure
    if failure is not None:
        reason = f"config.json has no {failure}" if isinstance(failure, KeyError) else failure
        raise ValueError(f"{repository or label} could not be loaded: {reason}") from failure


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
    if isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(
            f"a file of {repository} was deleted from the cache while it was read: load it again ({error})"
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


@contextmanager
def _cache_lock(
    repository: str | None, cache_dir: str | Path | None, *, shared: bool = False
) -> Iterator[None]:
    """Lock a repository in the cache against processes that do the same, or go on where that is impossible.

    Args:
        repository: ``"user/repo"``, or None for no lock.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        shared: Whether others may hold the lock at the same time, if they share it too.
    """
    if repository is None:
        yield
        return
    folder = Path(cache_dir or constants.HF_HUB_CACHE, ".locks")  # that of huggingface_hub
    path = folder / f"models--{repository.replace('/', '--')}" / "hybridhash.lock"
    lock: AbstractContextManager[None] = nullcontext()
    with suppress(OSError):  # a cache that may only be read: nothing can be deleted from it either
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if os.access(path, os.R_OK):
        lock = locked(path, shared=shared)
    with lock:
        yield


def _cached(
    repository: str, revision: str | None, cache_dir: str | Path | None
) -> Iterator[tuple[Path, Path]]:
    """Yield each file of a model in the cache, and the file that it links to."""
    for filename in _FILES:
        path = try_to_load_from_cache(repository, filename, cache_dir=cache_dir, revision=revision)
        if isinstance(path, str):
            # One file for all revisions that have it, each with a link.
            yield Path(path), Path(path).resolve()


def _discard_damaged(
    repository: str, revision: str | None, cache_dir: str | Path | None, *, all_files: bool = False
) -> None:
    """Delete files from the cache that differ from the Hub's checksum.

    Args:
        repository: ``"user/repo"``.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        all_files: Whether to delete the files of the model whatever their checksum.

    Raises:
        PermissionError: A damaged file cannot be deleted.
    """
    for path, blob in _cached(repository, revision, cache_dir):
        # Compared again, since another process may have deleted the file, and a third fetched it anew.
        if all_files or not _is_intact(blob):
            try:
                blob.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            except OSError as error:
                raise PermissionError(
                    f"the download of {repository} is damaged and cannot be deleted from the cache "
                    f"({error}): have {blob} deleted by whoever may, or load with another cache_dir"
                ) from error


def _is_intact(blob: Path) -> bool:
    """Return whether a cached file is what the Hub announced: large files are named by their SHA-256.

    A file that is gone counts as damaged: something else has deleted it.
    """
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return True
    try:
        return file_sha256(blob) == blob.name
    except FileNotFoundError:
        return False
