"""A small Hugging Face Hub on 127.0.0.1, and processes that take it for the real one.

It serves files and takes commits as huggingface_hub asks for them (without Xet), and misbehaves on request.
``HF_ENDPOINT`` is read when huggingface_hub is imported, hence the processes of their own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_the_one_token_that_is_good"

# What a repository can be told to do wrong.
DOWN = "down"  # 503 to everything
WEIGHTS_DOWN = "weights down"  # 503 to the weights only
CUT = "cut"  # the connection closes in the middle of the weights
SHORT = "short"  # fewer bytes of the weights than were announced
FLIPPED = "flipped"  # a bit of the weights is wrong
GATED = "gated"  # 403: conditions to accept
READ_ONLY = "read only"  # 403 to commits
FAILING_COMMIT = "failing commit"  # 500 to the commit, after the upload
# The error of a download at each fault, and its text; {} is the name of the repository.
SAID_OF_FAULTS = [
    (DOWN, "ConnectionError", "the transfer of {} failed .*503.*try again"),
    (WEIGHTS_DOWN, "ConnectionError", "the transfer of {} failed .*503.*try again"),
    (CUT, "ConnectionError", "the transfer of {} failed .*try again"),
    (SHORT, "ConnectionError", "the transfer of {} failed .*Consistency check.*try again"),
    (FLIPPED, "OSError", "the download of {} was damaged and is deleted.*load it again"),
    (GATED, "PermissionError", "{} is gated: accept its conditions at .*/{}, then log in"),
]


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    fault: str | None = None
    commits: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.commit("initial")

    def commit(self, message):
        self.commits.append(message)
        return self.head

    @property
    def head(self):
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for name, data in sorted(self.files.items()):
            digest.update(name.encode())
            digest.update(data)
        return digest.hexdigest()


class FakeHub:
    """The server; ``repositories`` may be changed while it runs. Use as a context manager.

    ``requests`` lists every request as ``(method, path)``.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def add(self, name, files=None, **options):
        """A new repository in place of any of that name."""
        self.repositories[name] = Repository(dict(files or {}), **options)
        return self.repositories[name]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._route()

    def do_GET(self):
        self._route()

    def do_POST(self):
        self._route()

    def do_PUT(self):
        self._route()

    def _route(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        routes = {
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
            r"/api/models/([^/]+/[^/]+)/revision/([^/]+)": self._info,
            r"/api/models/([^/]+/[^/]+)": self._info,
            r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._lfs_batch,
        }
        for pattern, action in routes.items():
            if match := re.fullmatch(pattern, path):
                if (repository := self._open(match[1])) is not None:
                    action(repository, *match.groups()[1:])
                return
        if path == "/api/repos/create":
            self._create()
        elif path == "/api/whoami-v2":
            self._who_am_i()
        elif path.startswith("/upload/"):
            self.hub.uploads[path.removeprefix("/upload/")] = self.body
            self._answer(200, {})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": f"no route to {path}"})

    def _open(self, name):
        """The repository, or None after an answer that refuses it."""
        repository = self.hub.repositories.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token != TOKEN:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.private and not token):
            # The Hub answers 401 to strangers, whether there is no such repository or a private one.
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.fault == DOWN:
            self._answer(503, {"error": "Service Unavailable"})
        elif repository.fault == GATED:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        else:
            self.name = name
            return repository
        return None

    def _resolve(self, repository, revision, filename):
        if not self._has(repository, revision):
            return
        if filename not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.head})
            return
        data = repository.files[filename]
        is_weights = not filename.endswith((".json", ".md"))
        fault = repository.fault if is_weights else None
        if fault == WEIGHTS_DOWN:
            self._answer(503, {"error": "Service Unavailable"})
            return
        headers = {
            "X-Repo-Commit": repository.head,
            # As on the Hub: SHA-256 of large files, git's SHA-1 of small ones.
            "ETag": f'"{hashlib.sha256(data).hexdigest() if is_weights else git_sha1(data)}"',
            "Accept-Ranges": "bytes",
        }
        if self.command == "HEAD":
            self._send(200, b"", {**headers, "Content-Length": str(len(data))})
            return
        if fault == FLIPPED:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == SHORT:
            data = data[: len(data) // 2]
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        data = data[start:]
        if fault == CUT:
            self._send(status, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
        else:
            self._send(status, data, {**headers, "Content-Length": str(len(data))})

    def _has(self, repository, revision):
        if revision in ("main", repository.head):
            return True
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _info(self, repository, revision="main"):
        if self._has(repository, revision):
            siblings = [{"rfilename": path} for path in repository.files]
            self._answer(
                200,
                {
                    "id": self.name,
                    "sha": repository.head,
                    "private": repository.private,
                    "siblings": siblings,
                    "tags": [],
                    "downloads": 0,
                },
            )

    def _is_known(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, {"error": "Invalid username or password."})
        return False

    def _who_am_i(self):
        if self._is_known():
            self._answer(200, {"name": "someone", "type": "user"})

    def _create(self):
        if not self._is_known():
            return
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self._answer(409, {**answer, "error": "You already created this model repo"})
            return
        self.hub.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer(200, answer)

    def _may_write(self, repository):
        if repository.fault == READ_ONLY or not self.headers.get("Authorization"):
            self._answer(403, {"error": "You don't have the rights to write to this repository"})
            return False
        return True

    def _preupload(self, repository, _revision):
        if self._may_write(repository):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["path"].endswith((".json", ".md")) else "lfs",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._answer(200, {"files": files})

    def _lfs_batch(self, repository):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/upload/{o['oid']}"}}}
            for o in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository, _revision):
        if not self._may_write(repository):
            return
        if repository.fault == FAILING_COMMIT:
            self._answer(500, {"error": "Internal Server Error"})
            return
        operations = [json.loads(line) for line in self.body.splitlines()]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.uploads[value["oid"]]
            elif operation["key"] == "deletedFile":
                del repository.files[value["path"]]
        header = next(o["value"] for o in operations if o["key"] == "header")
        oid = repository.commit(header["summary"])
        self._answer(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{self.name}/commit/{oid}"}
        )

    def _refuse(self, status, code, message, headers=None):
        more = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._answer(status, {"error": message}, more)

    def _answer(self, status, content, headers=None):
        data = json.dumps(content).encode()
        more = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        self._send(status, data, more)

    def _send(self, status, data, headers):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)


def git_sha1(data):
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Process:
    """A process with an environment and an empty cache of its own, that calls functions of test modules."""

    def __init__(self, home, **environment):
        variables = {
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(variables,))

    def call(self, function, *args, **kwargs):
        """``function(*args, **kwargs)`` there; what it raises is raised here."""
        return self.start(function, *args, **kwargs).result(timeout=120)

    def start(self, function, *args, **kwargs):
        """The same without waiting: the future of the result."""
        return self._pool.submit(function, *args, **kwargs)

    def close(self):
        self._pool.shutdown()


def _prepare(variables):
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_ENDPOINT",
    ):
        os.environ.pop(name, None)
    os.environ.update(variables)
    time.sleep = lambda _: None  # huggingface_hub waits up to 23 s between its attempts
