"""A model hub on 127.0.0.1 that speaks the protocol of huggingface_hub, for tests with the real client.

It keeps repositories in memory and can misbehave on purpose: cut a connection, serve wrong bytes, not answer,
lie.
Large files (here: `.safetensors` and `.png`) are LFS files; their `resolve` answers with a redirect to
another host name, as the hub's does to its storage, where no token may arrive.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "abcDEF0123456789" * 2 + "xy"
LFS = (".safetensors", ".png")


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit: {path: content}
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag: commit

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        content = dict(self.commits.get(self.refs.get(branch, ""), {})) | files
        known = json.dumps([len(self.commits), sorted((p, git_id(c)) for p, c in content.items())])
        sha = hashlib.sha1(known.encode()).hexdigest()
        self.commits[sha] = content
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server; use as a context manager. `requests` is what came in: (method, path, headers)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}  # LFS objects by sha256
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cuts = 0  # so many downloads from storage are cut in the middle
        self.corrupt = 0  # so many downloads from storage have a wrong byte
        self.renamed: dict[str, str] = {}  # old repository name: new one, answered by a redirect
        self.barrier: threading.Barrier | None = None  # downloads from storage wait for one another
        self.status = 0  # answer everything with this status
        self.lie: Callable[[Handler, str], bool] | None = None  # may answer for a file (tests/lies.py)
        self.outside = ""  # a folder where no client may write
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, folder: Path, **how: Any) -> str:
        """A repository with the files of a folder; returns its commit."""
        repository = self.repositories.setdefault(name, Repository(**how))
        paths = [p for p in folder.rglob("*") if p.is_file()]
        return repository.commit({p.relative_to(folder).as_posix(): p.read_bytes() for p in paths})

    def paths(self, method: str, part: str) -> list[str]:
        return [path for m, path, _ in self.requests if m == method and part in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    # ------------------------------------------------------------------------------------ plumbing

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.status:
            return self.answer({"error": "Internal"}, status=self.hub.status)
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return function(self, **match.groupdict())
        return self.answer({"error": "no such address"}, status=404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client was killed
                self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def bad_token(self) -> bool:
        if self.token() in (None, TOKEN):
            return False
        message = "Invalid credentials in Authorization header"
        self.answer({"error": message}, 401, X_Error_Message=message)
        return True

    def repository(self, repo: str) -> Repository | None:
        """The repository if it may be seen; otherwise the refusal is sent, in the hub's own way."""
        found = self.hub.repositories.get(repo)
        if self.bad_token():
            return None
        if found is None or (found.private and self.token() != TOKEN):
            status = 404 if self.token() else 401  # who is not logged in learns no more
            self.refuse(status, "RepoNotFound", "Repository not found")
            return None
        return found

    # ------------------------------------------------------------------------------------- reading

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.repository(repo)
        if found is None:
            return None
        sha = found.find(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in sorted(found.commits[sha])]
        gated = "manual" if found.gated else False
        return self.answer({"_id": "1", "id": repo, "sha": sha, "private": found.private, "gated": gated,
                            "siblings": siblings})  # fmt: skip

    def tree(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None:
            return None
        sha = found.find(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        rows: list[dict[str, Any]] = []
        for path, content in sorted(found.commits[sha].items()):
            row = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            if path.endswith(LFS):
                row["lfs"] = {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 130,
                }
            rows.append(row)
        return self.answer(rows)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if self.hub.lie is not None and self.hub.lie(self, path):
            return None
        if repo in self.hub.renamed:
            return self.answer(b"", 307, Location=f"/{self.hub.renamed[repo]}/resolve/{revision}/{path}")
        found = self.repository(repo)
        if found is None:
            return None
        if found.gated:
            return self.refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        sha = found.find(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = found.commits[sha].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if not path.endswith(LFS):
            return self.answer(content, X_Repo_Commit=sha, ETag=f'"{git_id(content)}"', Accept_Ranges="bytes")
        digest = hashlib.sha256(content).hexdigest()
        self.hub.storage[digest] = content
        return self.answer(
            b"", 302, Location=f"http://localhost:{self.hub.port}/storage/{digest}", X_Repo_Commit=sha,
            X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(content)),
        )  # fmt: skip

    def storage(self, digest: str) -> None:
        content = self.hub.storage[digest]
        start, status, headers = 0, 200, {"ETag": f'"{digest}"', "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked:
            start, status = int(asked[1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.hub.barrier is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.hub.barrier.wait(60)
        if self.hub.corrupt > 0:
            self.hub.corrupt -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.hub.cuts > 0:
            self.hub.cuts -= 1
            half = (len(content) - start) // 2
            headers["Content_Length"] = str(len(content) - start)
            self.answer(content[start : start + half], status, **headers)
            self.close_connection = True
            return None
        return self.answer(content[start:], status, **headers)

    # ------------------------------------------------------------------------------------- writing

    def create(self) -> None:
        if self.bad_token():
            return None
        if self.token() is None:
            return self.answer({"error": "Unauthorized"}, 401, X_Error_Message="Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "org":
            message = "You don't have the rights to create a model under the namespace"
            return self.answer({"error": message}, 403, X_Error_Message=message)
        if name in self.hub.repositories:
            return self.answer(
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409
            )
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

    def validate(self) -> None:
        asked = json.loads(self.body)
        good = asked["content"].startswith("---\n") or "---" not in asked["content"]
        return self.answer({"errors": [] if good else [{"message": "bad front matter"}], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if self.repository(repo) is None:
            return None
        files = []
        for file in json.loads(self.body)["files"]:
            base64.b64decode(file["sample"])
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return self.answer({"files": files})

    def batch(self, repo: str) -> None:
        if self.repository(repo) is None:
            return None
        asked = json.loads(self.body)
        assert asked["operation"] == "upload"
        assert asked["hash_algo"] == "sha256"
        objects: list[dict[str, Any]] = []
        for wanted in asked["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                upload = {"href": f"http://localhost:{self.hub.port}/upload/{wanted['oid']}"}
                row["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{repo}/verify"}}
            objects.append(row)
        return self.answer({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self.answer({"error": "wrong sha256"}, 400)
        self.hub.storage[digest] = self.body
        return self.answer(b"", ETag=f'"{digest}"')

    def verify(self, repo: str) -> None:
        if self.repository(repo) is None:
            return None
        asked = json.loads(self.body)
        good = len(self.hub.storage.get(asked["oid"], b"")) == asked["size"]
        return self.answer({}, 200 if good else 404)

    def commit(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        assert lines[0]["key"] == "header"
        assert lines[0]["value"]["summary"]
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.storage[value["oid"]]
            else:
                assert line["key"] == "file"
                files[value["path"]] = base64.b64decode(value["content"])
        sha = found.commit(files, revision)
        return self.answer(
            {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True}
        )


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = (
    (("GET",), rf"/api/models/{_REPO}", Handler.info),
    (("GET",), rf"/api/models/{_REPO}/revision/(?P<revision>.+)", Handler.info),
    (("GET",), rf"/api/models/{_REPO}/tree/(?P<revision>.+)", Handler.tree),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    (("GET", "HEAD"), r"/storage/(?P<digest>\w+)", Handler.storage),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/upload/(?P<digest>\w+)", Handler.upload),
    (("POST",), rf"/{_REPO}/verify", Handler.verify),
    (("POST",), rf"/api/models/{_REPO}/commit/(?P<revision>.+)", Handler.commit),
)
