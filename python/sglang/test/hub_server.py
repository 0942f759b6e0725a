"""HubServer: a stand-in for the model hub on the loopback, for tests: what huggingface_hub asks of it, its refusals."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A model: paths in it -> files. `refused`: the status and the hub's error code that every request gets."""

    files: dict[str, Path | bytes]
    refused: tuple[int, str] | None = None
    needs_token: str | None = None
    stalls: str | None = None  # a path whose bytes do not come
    branches: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})  # to commits

    def read(self, path: str) -> bytes:
        file = self.files[path]
        return file if isinstance(file, bytes) else file.read_bytes()


class HubServer(ThreadingHTTPServer):
    """On a free port, until the block ends; `requests` has what was asked."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Repo]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests: list[str] = []
        self.stalled, self.ended = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """Files whose bytes were asked for."""
        return sorted(
            {line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line}
        )


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = self.server.repos.get("/".join(parts[:2]))
        if repo is None:
            return self._refuse(401, "RepoNotFound")  # as the hub says it, so that nobody learns what is private
        if repo.refused:
            return self._refuse(*repo.refused)
        if repo.needs_token and self.headers.get("Authorization") != f"Bearer {repo.needs_token}":
            return self._refuse(401, "GatedRepo")
        kind, revision = (*parts[2:4], "revision", "main")[:2] if len(parts) > 2 else ("revision", "main")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.branches.values():
            return self._refuse(404, "RevisionNotFound")
        if kind == "revision":
            siblings = [{"rfilename": name} for name in repo.files]
            self._json({"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings})
        elif kind == "tree":
            sizes = {name: len(repo.read(name)) for name in repo.files}
            self._json(
                [{"type": "file", "path": name, "size": n, "oid": _sha(name.encode())} for name, n in sizes.items()]
            )
        elif (name := "/".join(parts[4:])) in repo.files:
            data = repo.read(name)
            if name == repo.stalls and self.command == "GET":
                self.server.stalled.set()
                self.server.ended.wait()
            etag = _sha(data)
            self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
