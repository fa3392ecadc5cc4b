"""The connection to Milvus: addresses, Milvus Lite, and requests that are repeated."""

from __future__ import annotations

import importlib.util
import os
import re
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from hybridhash._checks import check_integer

__all__ = ["Connection"]

_LITE = "2.5.1"  # the last one with binary vectors
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts; doubled each time
# Codes of Milvus's errors that another attempt does not heal.
_REFUSED = {100, *range(1100, 1200)}  # no such collection, parameters
_UNAUTHORISED = range(1400, 1500)


class Connection:
    """A client of a Milvus server, or of a file through Milvus Lite, whose failed requests are repeated.

    Args:
        uri: ``http(s)://host:port`` or ``host:port`` of a server, or the path of a file that ends in ``.db``.
        token: ``"user:password"`` or a token; may be empty.
        timeout: Seconds for one attempt.
        retries: Number of times that a failed request is repeated.

    Attributes:
        uri: The address as pymilvus takes it.
        lite: Whether it is a file.
        client: The ``pymilvus.MilvusClient``, once :meth:`open` was called.

    Raises:
        TypeError, ValueError: ``uri`` is no address, or ``timeout`` or ``retries`` is out of range.
    """

    def __init__(self, uri: str | os.PathLike[str], token: str, timeout: float, retries: int) -> None:
        self.uri, self.lite = _address(uri)
        self._token = token
        self._retries = check_integer("retries", retries, 0)
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        self._timeout = timeout
        self.client: Any = None

    @property
    def public_uri(self) -> str:
        """The address without user and password."""
        if "://" not in self.uri:
            return self.uri
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def open(self) -> None:
        """Connect; raise as :class:`hybridhash.search.MilvusIndex` describes."""
        if importlib.util.find_spec("pymilvus") is None:
            raise ImportError("MilvusIndex needs pymilvus: pip install hybridhash[milvus]")
        if self.lite:
            _check_lite(Path(self.uri))
        from pymilvus import MilvusClient

        def connect() -> Any:
            return MilvusClient(self.uri, token=self._token, timeout=self._timeout)

        self.client = self._attempt(connect, self.public_uri)

    def request(self, where: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the method ``name`` of the client; ``where`` is what errors call its target."""
        call = getattr(self.client, name)
        return self._attempt(lambda: call(*args, timeout=self._timeout, **kwargs), where)

    def _attempt(self, call: Callable[[], Any], where: str) -> Any:
        """Call until it works, with pauses; raise at once what another attempt does not heal."""
        from pymilvus.exceptions import MilvusException, ParamError

        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                return call()
            except MilvusException as error:
                failure = error
                words = f"{where}: {' '.join(str(error).split())}"
                if error.code in _UNAUTHORISED or re.search("UNAUTHENTICATED|PERMISSION_DENIED", words):
                    raise PermissionError(f"{words}. The server wants another token=") from error
                if error.code in _REFUSED or isinstance(error, ParamError):
                    raise ValueError(f"{words}. Milvus does not take this request") from error
        raise ConnectionError(
            f"{words}. No success in {self._retries + 1} attempts: is the server up, and the address right?"
        ) from failure


def _address(uri: str | os.PathLike[str]) -> tuple[str, bool]:
    """Return the address as pymilvus takes it, and whether it is a file of Milvus Lite."""
    text = os.fspath(uri)
    if re.match(r"[a-z]+://|unix:", text):
        return text, False
    if re.fullmatch(r"[\w.-]+:\d+", text):
        return f"http://{text}", False
    if not text.endswith(".db"):
        raise ValueError(
            f"uri must be http(s)://host:port, host:port, or a file that ends in .db, got {text!r}"
        )
    return os.path.abspath(text), True


def _check_lite(file: Path) -> None:
    """Raise unless Milvus Lite can serve the file: right version, its requirements, an existing folder."""
    advice = f"pip install milvus-lite=={_LITE} 'setuptools<81'"
    try:
        version = metadata.version("milvus-lite")
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"{file} is a file, which needs Milvus Lite {_LITE}: {advice}; or give the address of a server"
        ) from None
    if version != _LITE:
        raise ImportError(
            f"Milvus Lite {version} is installed, but 3.x refuses binary vectors and only {_LITE} is known "
            f"to take them: {advice}; or give the address of a server"
        )
    if importlib.util.find_spec("pkg_resources") is None:
        raise ImportError(
            f"Milvus Lite {_LITE} needs pkg_resources, which newer setuptools do not have: {advice}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import milvus_lite  # noqa: F401
    if not file.parent.is_dir():
        raise FileNotFoundError(f"cannot open {file}: the folder {file.parent} does not exist, create it")
