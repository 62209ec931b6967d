"""Routes that read: repositories, revisions, trees, history, files."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import parse_qs, unquote

from hub.context import Context
from hub.store import Commit, Entry, Repo
from hub.wire import HubError, Reply, Request, json_reply, paged, route

API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+)"
COMMITS_PER_PAGE = 50


def whoami(context: Context, request: Request) -> Reply:
    user = context.signed_in(request)
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in user.orgs if name != "*"]
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
    return json_reply(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": token}
    )


def repo_info(context: Context, request: Request) -> Reply:
    repo = context.readable(request)
    sha = context.commit_sha(repo, request)
    blobs = request.flag("blobs")
    info = {
        "_id": hashlib.sha1(repo.id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": sha,
        "createdAt": repo.created,
        "lastModified": repo.commits[sha].date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": sum(item["size"] for item in repo.lfs.values()),
        "siblings": [_sibling(path, entry, blobs) for path, entry in sorted(repo.commits[sha].tree.items())],
    }
    return json_reply({**info, "modelId": repo.id} if repo.kind == "models" else info)


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    found: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        found["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}
    return found


def _pointer_size(entry: Entry) -> int:
    return 125 + len(str(entry.size))


def refs(context: Context, request: Request) -> Reply:
    repo = context.readable(request)

    def listed(prefix: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

    found = {"branches": listed("refs/heads/", repo.branches), "tags": listed("refs/tags/", repo.tags), "converts": []}
    return json_reply({**found, "pullRequests": []} if request.flag("include_prs") else found)


def commits(context: Context, request: Request) -> Reply:
    repo = context.readable(request)
    history = repo.history(context.commit_sha(repo, request))
    items = [
        {**_commit(sha, commit), "message": commit.message, "authors": [{"user": commit.author}]}
        for sha, commit in history
    ]
    return paged(request, items, min(COMMITS_PER_PAGE, context.settings.page_size))


def _commit(sha: str, commit: Commit) -> dict[str, Any]:
    return {"id": sha, "title": commit.title, "date": commit.date}


def tree(context: Context, request: Request) -> Reply:
    repo = context.readable(request)
    sha = context.commit_sha(repo, request)
    files = repo.commits[sha].tree
    folder = request.groups.get("path", "").strip("/")
    prefix = folder + "/" if folder else ""
    inside = [path for path in files if path.startswith(prefix)]
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {request.groups['rev']!r}", "EntryNotFound")
    depth = None if request.flag("recursive") else prefix.count("/") + 1
    paths = {step for path in inside for step in _steps(path) if step.startswith(prefix) and step != prefix}
    shown = sorted(path for path in paths if depth is None or path.count("/") < depth)
    expand = request.flag("expand")
    items = [_node(repo, sha, path, expand) for path in shown]
    return paged(request, items, min(50, context.settings.page_size) if expand else context.settings.page_size)


def _steps(path: str) -> list[str]:
    """The path and every folder above it."""
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _node(repo: Repo, sha: str, path: str, expand: bool) -> dict[str, Any]:
    """A file, or a folder if there is no file of this name."""
    files = repo.commits[sha].tree
    entry = files.get(path)
    if entry is None:
        inside = sorted((name, entry.oid) for name, entry in files.items() if name.startswith(path + "/"))
        oid = hashlib.sha1(repr(inside).encode(), usedforsecurity=False).hexdigest()
        node: dict[str, Any] = {"type": "directory", "path": path, "size": 0, "oid": oid}
    else:
        node = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            node["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}
    if expand:
        node["lastCommit"] = _commit(*repo.last_change(sha, path))
    return node


def paths_info(context: Context, request: Request) -> Reply:
    repo = context.readable(request)
    sha = context.commit_sha(repo, request)
    if "json" in request.headers.get("Content-Type", ""):
        form = request.json()
    else:
        form = parse_qs(request.content.decode())
    expand = form.get("expand") in (True, ["True"], ["true"])
    known = {step for path in repo.commits[sha].tree for step in _steps(path)}
    return json_reply([_node(repo, sha, path, expand) for path in form.get("paths", []) if path in known])


def lfs_files(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    items = [{"fileOid": sha256, "oid": sha256, **item} for sha256, item in repo.lfs.items()]
    return paged(request, items, context.settings.page_size)


def resolve(context: Context, request: Request) -> Reply:
    repo = context.readable(request)
    sha = context.commit_sha(repo, request)
    path = request.groups["path"]
    entry = repo.commits[sha].tree.get(path)
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if entry is None or not context.store.blobs.has(entry.sha256):
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    if not entry.lfs:
        headers["ETag"] = f'"{entry.oid}"'
        return Reply(headers=headers, file=context.store.blobs.path(entry.sha256))
    location = context.sign(request, f"/cdn/{repo.kind}/{repo.id}/{entry.sha256}/{path}", commit=sha)
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "Location": location}
    return Reply(302, b"Found. Redirecting", {**headers, "ETag": f'"{entry.sha256}"', "Content-Type": "text/plain"})


def cdn(context: Context, request: Request) -> Reply:
    """The bytes behind a signed address. Asks for no token."""
    facts = context.check_signature(request, unquote(request.path), "commit")
    file = context.store.blobs.path(request.groups["sha256"])
    if not file.exists():
        raise HubError(404, "NoSuchKey")
    # X-Repo-Commit matters where `cdn_host` is the Hub's own name: the client then follows the redirect for metadata.
    headers = {"ETag": f'"{request.groups["sha256"]}"', "Accept-Ranges": "bytes", "X-Repo-Commit": facts["commit"]}
    return Reply(headers=headers, file=file)


def nothing(_context: Context, _request: Request) -> Reply:
    return json_reply({})


ROUTES = [
    route("GET", r"/api/whoami-v2", whoami),
    route("GET", r"/api/agent-harnesses", nothing),
    route("GET", API, repo_info),
    route("GET", rf"{API}/revision/{REV}", repo_info),
    route("GET", rf"{API}/refs", refs),
    route("GET", rf"{API}/commits/{REV}", commits),
    route("GET", rf"{API}/tree/{REV}(?:/(?P<path>.*))?", tree),
    route("POST", rf"{API}/paths-info/{REV}", paths_info),
    route("GET", rf"{API}/lfs-files", lfs_files),
    route("GET", rf"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)/resolve/{REV}/(?P<path>.+)", resolve),
    route("GET", r"/cdn/(?:models|datasets)/[^/]+/[^/]+/(?P<sha256>[0-9a-f]{64})/.+", cdn),
]
