"""The manifest of a saved index: what it holds, and where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hybridhash._files import replacing
from hybridhash._fingerprint import json_sha256
from hybridhash.search.interface import check_model_id

__all__ = ["check_content", "check_replaceable", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
_FORMAT = "hybridhash.search"
_VERSION = "3"
# In version 1, model_id is called model. Both have no SHA-256 of the manifest and one file.
_OLD_VERSIONS = ("1", "2")


def check_replaceable(folder: Path) -> None:
    """Raise FileExistsError if the manifest in a folder is not that of an index."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: damaged, so nothing is lost
        return
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileExistsError(f"{file} is not of an index: save the index to another folder")


def write_manifest(folder: Path, backend: str, content: dict[str, Any]) -> None:
    """Write the description of an index, and its SHA-256, to ``manifest.json``, atomically."""
    content = {"format": _FORMAT, "version": _VERSION, "backend": backend, **content}
    content["sha256"] = json_sha256(content)
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_manifest(folder: str | os.PathLike[str], backend: str, keys: Iterable[str]) -> dict[str, Any]:
    """Read what :func:`write_manifest` wrote, with all of ``keys``.

    Raises:
        FileNotFoundError: The folder has no manifest.
        ValueError: The manifest is damaged, or is of something else, another backend or another version.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"no index at {folder}: it has no {MANIFEST}; save of an index writes one")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): save the index again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{file} is no manifest of an index: give a folder that save of an index wrote")
    version = content.get("version")
    if version in _OLD_VERSIONS:
        content = _upgraded(content)
    elif version != _VERSION:
        raise ValueError(
            f"{file} has version {version!r} of the format, this hybridhash reads 1 to {_VERSION}: upgrade "
            "hybridhash, or build the index again"
        )
    elif content.pop("sha256", None) != json_sha256(content):
        raise ValueError(f"{file} is damaged, its SHA-256 is another: save the index again")
    if content.get("backend") != backend:
        raise ValueError(f"{file} is of a {content.get('backend')} index, not of {backend}: use its class")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{file} is damaged (no {', '.join(missing)}): save the index again")
    return dict(content)


def check_content(
    folder: str | os.PathLike[str], manifest: Mapping[str, Any], bits: int | None, model_id: str | None
) -> None:
    """Raise ValueError if an index is not of the bits and the model that its codes must have, if any."""
    if bits is not None and bits != manifest["bits"]:
        raise ValueError(f"the index at {folder} holds codes of {manifest['bits']} bits, not of {bits}")
    check_model_id(manifest["model_id"], model_id)


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an older version in the words of this one."""
    content = dict(content)
    if "model" in content:
        content["model_id"] = content.pop("model")
    if {"file", "bytes"} <= content.keys():
        entry = {"name": content["file"], "bytes": content["bytes"]}
        if "sha256" in content:
            entry["sha256"] = content["sha256"]
        content["files"] = {"faiss": entry}
    return content
