"""A Hub on this machine: the routes that huggingface_hub uses to read models."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """Serves published folders under fixed commits; `log` keeps (method, path, authorization)."""

    def __init__(self):
        self.repos = {}
        self.log = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, repo_id, folder, gated=False, sizes=None):
        """Make a folder readable as a model repository; `gated` needs the token `hf_friend`."""
        files = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
        sha = hashlib.sha1(repo_id.encode()).hexdigest()
        self.repos[repo_id] = {"files": files, "sha": sha, "gated": gated, "sizes": sizes or {}}
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.log.append((self.command, path, self.headers.get("Authorization")))
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(200, b"ok")

    def _repo(self, repo_id, revision):
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self._fail(401, "RepoNotFound")
        if revision not in (None, "main", "v1", repo["sha"]):
            return self._fail(404, "RevisionNotFound")
        return repo

    def _api(self, repo_id, rest):
        repo = self._repo(repo_id, rest[1] if len(rest) > 1 else None)
        if repo is None:
            return
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": self._size(repo, n), "oid": _oid(d)}
                    for n, d in repo["files"].items()]  # fmt: skip
            return self._json(tree)
        siblings = [{"rfilename": n, "size": self._size(repo, n), "blobId": _oid(d)} for n, d in repo["files"].items()]
        self._json(
            {"id": repo_id, "modelId": repo_id, "sha": repo["sha"], "siblings": siblings, "private": False,
             "gated": "manual" if repo["gated"] else False, "tags": [], "downloads": 0, "likes": 0}
        )  # fmt: skip

    def _size(self, repo, name):
        return repo["sizes"].get(name, len(repo["files"][name]))

    def _file(self, repo_id, revision, name):
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if repo["gated"] and self.headers.get("Authorization") != "Bearer hf_friend":
            return self._fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        if name not in repo["files"]:
            return self._fail(404, "EntryNotFound")
        data = repo["files"][name]
        self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repo["sha"], "Accept-Ranges": "bytes"})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status, code):
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _oid(data):
    return hashlib.sha1(data).hexdigest()
