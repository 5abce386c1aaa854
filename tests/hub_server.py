"""A small Hub in this process, for tests: enough of its HTTP interface for huggingface_hub to create, upload and load.

    with HubServer() as hub:
        ...  # clients with HF_ENDPOINT=hub.url and HF_TOKEN=hub.token

Repositories live in memory. What it does not know: pull requests, Xet, datasets, rights beyond one token; spaces do not
run.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
# Larger objects are uploaded in parts of this size.
PART_BYTES = 2**18
LFS_NAMES = re.compile(r".*\.(safetensors|bin|png)")


@dataclass(frozen=True)
class Blob:
    """A file's bytes; `is_lfs` says which of the two ways they came."""

    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """The name by which the Hub knows the content."""
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """All files after a commit, by path."""

    files: dict[str, Blob]
    message: str
    oid: str = field(default_factory=lambda: secrets.token_hex(20))


@dataclass
class Repo:
    """A repository: every branch is a list of commits, the newest last. `sdk` is that of a space."""

    private: bool
    sdk: str | None = None
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit({}, "initial commit")]})

    def commit(self, revision: str) -> Commit:
        """Find a commit by branch or id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        found = {commit.oid: commit for commits in self.branches.values() for commit in commits}
        if revision not in found:
            raise Refusal(404, "RevisionNotFound", f"no revision {revision}")
        return found[revision]


class Refusal(Exception):
    """An answer that is no success: status, the Hub's error code, words."""

    def __init__(self, status: int, code: str, text: str, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": text, **(headers or {})}


class HubServer:
    """The server; a context manager.

    Attributes:
        url: for `HF_ENDPOINT`.
        token: for `HF_TOKEN`; every other one is refused.
        environment: the variables by which a process becomes its client.
        repos: by `user/name`.
        objects: LFS contents by SHA-256, those of uploads that never ended in a commit too.
        refused: requests whose `METHOD /path` matches this pattern are answered with `refusal`.
        refusal: the status of these answers; the client repeats requests that end in 429 or 5xx.
        requests: all that were asked for, as `METHOD /path`.
    """

    def __init__(self) -> None:
        self.token = "hf_" + "t" * 20
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refused: str | None = None
        self.refusal = 403
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_OFFLINE": "0"}
        self.environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, repo_id: str) -> Repo:
        """Find a repository."""
        if repo_id not in self.repos:
            raise Refusal(404, "RepoNotFound", f"no repository {repo_id}")
        return self.repos[repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, by path."""
        return {path: blob.content for path, blob in self.repo(repo_id).commit(revision).files.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Find the route, and send its result or refusal; the body is always read, since connections are kept."""
        body, parts = self._body(), urlsplit(self.path)
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        request = f"{self.command} {unquote(parts.path)}"
        hub.requests.append(request)
        try:
            if hub.refused and re.search(hub.refused, request):
                raise Refusal(hub.refusal, "", "refused by the test")
            for pattern, route in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    self._authorize(hub, match.groupdict().get("repo"), writes=self.command not in ("GET", "HEAD"))
                    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                    self._send(*route(hub, body, query, **match.groupdict()))
                    return
            raise Refusal(404, "", f"no route for {request}")
        except Refusal as refusal:
            self._send(refusal.status, {"error": str(refusal)}, refusal.headers)
        except Exception:  # no client repeats what ends in 400
            self._send(400, {"error": traceback.format_exc()})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        """Say nothing on the terminal."""

    def _authorize(self, hub: HubServer, repo_id: str | None, writes: bool) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given == hub.token or self.path.startswith(("/lfs/", "/api/validate-yaml")):
            return
        if given or writes:
            raise Refusal(401, "", "Invalid username or password.")
        if repo_id in hub.repos and hub.repos[repo_id].private:
            raise Refusal(401, "RepoNotFound", f"no repository {repo_id}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _whoami(hub: HubServer, body: bytes, query: dict) -> tuple:
    return 200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}


def _create(hub: HubServer, body: bytes, query: dict) -> tuple:
    wish = json.loads(body)
    repo_id = f"{wish.get('organization') or USER}/{wish['name']}"
    answer = {"url": f"{hub.url}/{repo_id}", "name": repo_id}
    if repo_id in hub.repos:
        return 409, {**answer, "error": "You already created this model repo"}
    is_private = bool(wish.get("private") or wish.get("visibility") == "private")
    hub.repos[repo_id] = Repo(is_private, wish.get("sdk"))
    return 200, answer


def _delete(hub: HubServer, body: bytes, query: dict) -> tuple:
    wish = json.loads(body)
    del hub.repos[f"{wish.get('organization') or USER}/{wish['name']}"]
    return 200, {}


def _branch(hub: HubServer, body: bytes, query: dict, repo: str, name: str) -> tuple:
    branches = hub.repo(repo).branches
    if name in branches:
        return 409, {"error": "Reference already exists"}
    branches[name] = [hub.repo(repo).commit("main")]
    return 200, {}


def _validate_yaml(hub: HubServer, body: bytes, query: dict) -> tuple:
    return 200, {"errors": [], "warnings": []}


def _preupload(hub: HubServer, body: bytes, query: dict, repo: str, rev: str) -> tuple:
    known = hub.repo(repo).commit(rev).files
    files = []
    for file in json.loads(body)["files"]:
        path, mode = file["path"], "lfs" if LFS_NAMES.fullmatch(file["path"]) else "regular"
        oid = known[path].oid if path in known else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": files}


def _lfs_batch(hub: HubServer, body: bytes, query: dict, repo: str) -> tuple:
    hub.repo(repo)
    answers = []
    for wanted in json.loads(body)["objects"]:
        oid, size, answer = wanted["oid"], wanted["size"], dict(wanted)
        if oid not in hub.objects:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}"}
            if size > PART_BYTES:
                count = -(-size // PART_BYTES)
                urls = {str(number): f"{hub.url}/lfs/{oid}/{number}" for number in range(1, count + 1)}
                upload = {"href": f"{hub.url}/lfs/{oid}/complete", "header": {"chunk_size": str(PART_BYTES), **urls}}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}
        answers.append(answer)
    return 200, {"transfer": "basic", "objects": answers}


def _lfs_put(hub: HubServer, body: bytes, query: dict, oid: str) -> tuple:
    _keep(hub, oid, body)
    return 200, {}


def _lfs_part(hub: HubServer, body: bytes, query: dict, oid: str, number: str) -> tuple:
    hub.parts.setdefault(oid, {})[int(number)] = body
    return 200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}


def _lfs_complete(hub: HubServer, body: bytes, query: dict, oid: str) -> tuple:
    parts, wanted = hub.parts.pop(oid, {}), [part["partNumber"] for part in json.loads(body)["parts"]]
    _keep(hub, oid, b"".join(parts.get(number, b"") for number in wanted))
    return 200, {}


def _keep(hub: HubServer, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "", "the content has another SHA-256")
    hub.objects[oid] = content


def _lfs_verify(hub: HubServer, body: bytes, query: dict, oid: str) -> tuple:
    if len(hub.objects.get(oid, b"")) != json.loads(body)["size"]:
        raise Refusal(404, "", "the object is not here")
    return 200, {}


def _commit(hub: HubServer, body: bytes, query: dict, repo: str, rev: str) -> tuple:
    branches = hub.repo(repo).branches
    if rev not in branches:
        raise Refusal(404, "RevisionNotFound", f"no branch {rev}")
    files, message = dict(branches[rev][-1].files), ""
    for line in body.splitlines():
        entry = json.loads(line)
        key, value = entry["key"], entry["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, "", f"the object of {value['path']} was not uploaded")
            files[value["path"]] = Blob(hub.objects[value["oid"]], is_lfs=True)
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refusal(400, "", f"unknown operation {key}")
    commit = Commit(files, message)
    branches[rev].append(commit)
    return 200, {"success": True, "commitOid": commit.oid, "commitUrl": f"{hub.url}/{repo}/commit/{commit.oid}"}


def _info(hub: HubServer, body: bytes, query: dict, repo: str, rev: str | None = None) -> tuple:
    commit = hub.repo(repo).commit(rev or "main")
    siblings = [{"rfilename": path} for path in commit.files]
    facts = {"id": repo, "modelId": repo, "sha": commit.oid, "private": hub.repos[repo].private, "tags": []}
    return 200, {**facts, "siblings": siblings, "author": repo.split("/")[0]}


def _tree(hub: HubServer, body: bytes, query: dict, repo: str, rev: str, path: str | None = None) -> tuple:
    files = hub.repo(repo).commit(rev).files
    inside = {name: blob for name, blob in files.items() if path is None or name.startswith(f"{path}/")}
    if path is not None and not inside:
        raise Refusal(404, "EntryNotFound", f"no {path}")
    entries = []
    for name, blob in inside.items():
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(blob.content), "oid": blob.oid}
        if blob.is_lfs:
            entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
        entries.append(entry)
    return 200, entries


def _commits(hub: HubServer, body: bytes, query: dict, repo: str, rev: str) -> tuple:
    hub.repo(repo).commit(rev)
    commits = hub.repo(repo).branches.get(rev, [])
    day = "2026-01-01T00:00:00.000Z"
    return 200, [{"id": c.oid, "title": c.message, "message": "", "date": day, "authors": []} for c in commits[::-1]]


def _resolve(hub: HubServer, body: bytes, query: dict, repo: str, rev: str, path: str) -> tuple:
    commit = hub.repo(repo).commit(rev)
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        raise Refusal(404, "EntryNotFound", f"no {path}", headers)
    blob = commit.files[path]
    headers["ETag"] = f'"{blob.oid}"'
    if blob.is_lfs:
        headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
    return 200, blob.content, headers


_KIND = r"(?:models|spaces)"
_REPO, _REV, _OID = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[^/]+)", r"(?P<oid>[0-9a-f]{64})"
_ROUTES: list[tuple[str, Callable[..., tuple]]] = [
    (r"GET /api/whoami-v2", _whoami),
    (r"POST /api/repos/create", _create),
    (r"DELETE /api/repos/delete", _delete),
    (r"POST /api/validate-yaml", _validate_yaml),
    (rf"POST /api/{_KIND}/{_REPO}/branch/(?P<name>.+)", _branch),
    (rf"POST /api/{_KIND}/{_REPO}/preupload/{_REV}", _preupload),
    (rf"POST /(?:spaces/)?{_REPO}\.git/info/lfs/objects/batch", _lfs_batch),
    (rf"PUT /lfs/{_OID}", _lfs_put),
    (rf"PUT /lfs/{_OID}/(?P<number>\d+)", _lfs_part),
    (rf"POST /lfs/{_OID}/complete", _lfs_complete),
    (rf"POST /lfs/{_OID}/verify", _lfs_verify),
    (rf"POST /api/{_KIND}/{_REPO}/commit/{_REV}", _commit),
    (rf"GET /api/{_KIND}/{_REPO}", _info),
    (rf"GET /api/{_KIND}/{_REPO}/revision/{_REV}", _info),
    (rf"GET /api/{_KIND}/{_REPO}/tree/{_REV}(/(?P<path>.+))?", _tree),
    (rf"GET /api/{_KIND}/{_REPO}/commits/{_REV}", _commits),
    (rf"(HEAD|GET) /(?:spaces/)?{_REPO}/resolve/{_REV}/(?P<path>.+)", _resolve),
]
