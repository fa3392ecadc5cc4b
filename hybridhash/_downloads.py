"""Weights from the Hub: where timm takes them from, readable errors, no damaged file left in the cache."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
    from the cache, so that the next attempt fetches them again.

    Args:
        label: What errors call the model.
        repository: ``"user/repo"`` if the weights come from the Hub, else None.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
    """
    try:
        with explained(repository, revision, cache_dir):
            yield
    except _UNLOADABLE as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # out of memory, and the like
        if isinstance(error, HFValidationError):
            raise ValueError(f"{label!r} names no repository: {error}") from error
        unreadable = isinstance(error, (SafetensorError, json.JSONDecodeError))
        if repository and _discard_damaged(repository, revision, cache_dir, all_files=unreadable):
            raise _damaged(repository) from error
        reason = f"config.json has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{repository or label} could not be loaded: {reason}") from error
    if repository and _discard_damaged(repository, revision, cache_dir):
        raise _damaged(repository)


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


def _damaged(repository: str) -> OSError:
    return OSError(
        f"the download of {repository} was damaged and is deleted from the cache: load it again; if that "
        "fails too, the file in the repository is broken, so tell its owner"
    )


def _discard_damaged(
    repository: str, revision: str | None, cache_dir: str | Path | None, *, all_files: bool = False
) -> bool:
    """Delete files from the cache that differ from the Hub's checksum; return whether there were any.

    Args:
        repository: ``"user/repo"``.
        revision: Branch, tag or commit; None for the main branch.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        all_files: Whether to delete the files of the model whatever their checksum.

    Raises:
        PermissionError: A damaged file cannot be deleted.
    """
    found = all_files
    for filename in _FILES:
        path = try_to_load_from_cache(repository, filename, cache_dir=cache_dir, revision=revision)
        if not isinstance(path, str):
            continue
        blob = Path(path).resolve()  # one file for all revisions that have it, each with a link
        if all_files or not _is_intact(blob):
            found = True
            try:
                blob.unlink(missing_ok=True)
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                raise PermissionError(
                    f"the download of {repository} is damaged and cannot be deleted from the cache "
                    f"({error}): have {blob} deleted by whoever may, or load with another cache_dir"
                ) from error
    return found


def _is_intact(blob: Path) -> bool:
    """Return whether a cached file is what the Hub announced: large files are named by their SHA-256.

    A file that is gone counts as damaged: another process has deleted it.
    """
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return True
    digest = hashlib.sha256()
    try:
        with blob.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == blob.name
