"""A Hugging Face Hub on loopback that keeps what it is sent: log-in, repositories, LFS and commits, as huggingface_hub asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """`with FakeHub(token="hf_...") as hub`: `hub.url` is the endpoint; repositories and requests can be looked at."""

    token: str
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fail_commits: int = 0
    """Commits that are answered with 503 before one is accepted."""
    corrupt: bool = False
    """Whether uploaded regular files are changed on the way."""

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, code: int, document: Any = None, **headers: str) -> None:
        data = b"" if document is None else json.dumps(document).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        body = self._body()
        path = urllib.parse.urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("/lfs-put/"):  # a signed address: it is used without the token
            oid = path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                return self._answer(400, {"error": "wrong content"})
            self.hub.blobs[oid] = body
            return self._answer(200)
        if path.startswith("/api/agent-harnesses"):
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            return self._answer(200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/validate-yaml"):
            return self._answer(200, {"errors": [], "warnings": []})
        if match := re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?$", path):
            repo = self.hub.repos.get(match[1])
            if repo is None:
                return self._answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            return self._repo(match[1], repo, match[2] or "", body)
        return self._answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        document = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return self._answer(409, {"error": "You already created this model repo", **document})
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return self._answer(200, document)

    def _repo(self, name: str, repo: Repo, rest: str, body: bytes) -> None:
        if rest in ("", "/revision/main"):
            return self._answer(
                200,
                {
                    "_id": "1",
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "private": repo.private,
                    "siblings": [],
                    "tags": [],
                },
            )
        if rest.startswith("/preupload/"):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["size"] > 10_000 or f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if rest == "/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs-put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if rest.startswith("/commit/"):
            return self._commit(name, repo, body)
        if rest.startswith("/paths-info/"):
            paths = urllib.parse.parse_qs(body.decode())["paths"]
            return self._answer(200, [self._info(repo, path) for path in paths if path in repo.files])
        return self._answer(404, {"error": f"not found: {rest}"}, X_Error_Code="EntryNotFound")

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        if self.hub.fail_commits:
            self.hub.fail_commits -= 1
            return self._answer(503, {"error": "try later"})
        for line in filter(None, body.split(b"\n")):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                data = base64.b64decode(value["content"])
                repo.files[value["path"]] = data + b" " if self.hub.corrupt else data
            elif item["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.blobs[value["oid"]]
                repo.lfs[value["path"]] = value["oid"]
        url = f"{self.hub.url}/{name}/commit/{COMMIT}"
        return self._answer(
            200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}
        )

    def _info(self, repo: Repo, path: str) -> dict[str, Any]:
        data = repo.files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        info: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if path in repo.lfs:
            info["lfs"] = {"oid": repo.lfs[path], "size": len(data), "pointerSize": 130}
        return info

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle  # noqa: N815
