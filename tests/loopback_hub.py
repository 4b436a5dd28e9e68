"""A Hub on this machine: the routes that huggingface_hub and datasets use to read and write repositories."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

FRIEND, STRANGER = "Bearer hf_friend", "Bearer hf_stranger"


class LoopbackHub:
    """Serves published folders under fixed commits; `log` keeps (method, path, authorization).

    The token `hf_friend` may read gated and private repositories, and write those of `friend`; `hf_stranger` may read
    what is open to all. Repositories of datasets are kept under `datasets/OWNER/NAME`.
    """

    def __init__(self):
        self.repos = {}
        self.log = []
        self.held = {}
        """Repository -> event that its files wait for."""
        self.tricks = {}
        """Repository -> what answers in the place of its files: called with the request, name and data."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, repo_id, folder, gated=False, sizes=None, private=False):
        """Make a folder readable as a repository; `gated` or `private` needs the token `hf_friend`."""
        folder = Path(folder)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return self.serve(repo_id, files, gated, sizes, private)

    def serve(self, repo_id, files, gated=False, sizes=None, private=False):
        """Make files, name -> bytes, readable as a repository, whatever they are called."""
        sha = hashlib.sha1(repo_id.encode()).hexdigest()
        self.repos[repo_id] = {"files": files, "sha": sha, "gated": gated, "sizes": sizes or {}, "private": private}
        return sha

    def tagged(self, tags):
        """Ids of the public datasets whose cards have all these tags, as the Hub reads them from README.md."""
        found = []
        for name, repo in self.repos.items():
            card = repo["files"].get("README.md", b"").decode(errors="replace")
            if name.startswith("datasets/") and not repo["private"] and card.startswith("---"):
                try:
                    known = (yaml.safe_load(card.split("---")[1]) or {}).get("tags") or []
                except (yaml.YAMLError, RecursionError):  # a hostile card of another test
                    continue
                found += [name.removeprefix("datasets/")] if set(tags) <= set(known) else []
        return found


class _Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        address = urlsplit(self.path)
        path = unquote(address.path).strip("/")
        self.token = self.headers.get("Authorization")
        self.query = parse_qs(address.query)
        self.hub.log.append((self.command, path, self.token))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.split("/")
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(self.body))
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if parts == ["api", "datasets"]:
            return self._json([{"id": name} for name in self.hub.tagged(self.query.get("filter", []))])
        if parts[:2] == ["api", "datasets"]:
            return self._api("datasets/" + "/".join(parts[2:4]), parts[4:])
        if parts[0] == "datasets" and len(parts) >= 6 and parts[3] == "resolve":
            return self._file("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(200, b"ok")

    def _repo(self, repo_id, revision):
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo["private"] and self.token != FRIEND):
            return self._fail(401, "RepoNotFound")
        if revision not in (None, "main", "v1", repo["sha"]):
            return self._fail(404, "RevisionNotFound")
        return repo

    def _api(self, repo_id, rest):
        verb = rest[0] if rest else ""
        repo = self._repo(repo_id, rest[1] if len(rest) > 1 else None)
        if repo is None:
            return None
        if verb in ("preupload", "commit") and (self.token != FRIEND or "friend/" not in repo_id):
            return self._fail(403, "Forbidden")
        if verb == "preupload":
            files = json.loads(self.body)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if verb == "commit":
            return self._commit(repo_id, repo)
        if verb == "auth-check":
            return self._refuse() if repo["gated"] and self.token != FRIEND else self._json({})
        if verb == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body or b"{}").get("paths", [])
            return self._json([e for e in _tree(repo, "", True) if e["path"] in wanted])
        if verb == "tree":
            return self._json(_tree(repo, "/".join(rest[2:]), self.query.get("recursive") in (["true"], ["True"])))
        siblings = [{"rfilename": n, "size": _size(repo, n), "blobId": _oid(d)} for n, d in repo["files"].items()]
        return self._json(
            {
                "id": repo_id.removeprefix("datasets/"),
                "modelId": repo_id,
                "sha": repo["sha"],
                "siblings": siblings,
                "private": repo["private"],
                "gated": "manual" if repo["gated"] else False,
                "tags": [],
                "cardData": _card(repo),
                "downloads": 0,
                "likes": 0,
            }
        )

    def _create(self, wish):
        name = f"{wish['type']}s/{wish['organization']}/{wish['name']}"
        if self.token is None:
            return self._fail(401, "Unauthorized")
        if self.token != FRIEND or wish["organization"] != "friend":
            return self._fail(403, "Forbidden")
        if name in self.hub.repos:
            return self._fail(409, "Conflict")
        sha = hashlib.sha1(name.encode()).hexdigest()
        private = wish.get("private") or wish.get("visibility") == "private"
        self.hub.repos[name] = {"files": {}, "sha": sha, "gated": False, "sizes": {}, "private": private}
        return self._json({"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _commit(self, repo_id, repo):
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                repo["files"][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        repo["sha"] = hashlib.sha1(self.body).hexdigest()
        return self._json(
            {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{repo['sha']}", "commitOid": repo["sha"], "hookOutput": ""}
        )

    def _file(self, repo_id, revision, name):
        repo = self._repo(repo_id, revision)
        if repo is None:
            return None
        if repo_id in self.hub.held:
            self.hub.held[repo_id].wait(60)
        if repo["gated"] and self.token != FRIEND:
            return self._refuse()
        if name not in repo["files"]:
            return self._fail(404, "EntryNotFound")
        data = repo["files"][name]
        if repo_id in self.hub.tricks:
            return self.hub.tricks[repo_id](self, name, data)
        return self.send_file(repo, data)

    def send_file(self, repo, data):
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repo["sha"], "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._send(206, data[start : end + 1], headers)
        return self._send(200, data, headers)

    def _refuse(self):
        return self._fail(403 if self.token else 401, "GatedRepo")

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
        if self.command != "HEAD":
            self.wfile.write(data)


def _card(repo):
    """What README.md tells, as the Hub reads it."""
    card = repo["files"].get("README.md", b"").decode("utf-8", "replace")
    try:
        return (yaml.safe_load(card.split("---")[1]) if card.startswith("---") else None) or {}
    except (yaml.YAMLError, RecursionError):
        return {}


def _tree(repo, under, recursive):
    entries = {}
    for name, data in repo["files"].items():
        if under and not name.startswith(under + "/"):
            continue
        rest = name[len(under) + 1 if under else 0 :].split("/")
        if len(rest) == 1 or recursive:
            entries[name] = {"type": "file", "path": name, "size": _size(repo, name), "oid": _oid(data)}
        if len(rest) > 1:
            folder = "/".join(([under] if under else []) + rest[:1])
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": _oid(folder.encode())}
    return list(entries.values())


def _size(repo, name):
    return repo["sizes"].get(name, len(repo["files"][name]))


def _oid(data):
    return hashlib.sha1(data).hexdigest()
