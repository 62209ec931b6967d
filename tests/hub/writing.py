"""Routes that change a repository: create, commit, tags, branches, history."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, cast

from hub.context import Context
from hub.reading import API, REV
from hub.store import Change, Kind, MissingPathError, Repo, StaleParentError, is_lfs
from hub.wire import HubError, Reply, Request, json_reply, route


def _repo_url(request: Request, kind: Kind, repo_id: str) -> str:
    return f"{request.base_url}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"


def _named(context: Context, request: Request) -> tuple[Kind, str]:
    """The repository that the body of a create or delete names; the caller may write to it."""
    body, user = request.json(), context.signed_in(request)
    repo_id = f"{body.get('organization') or user.name}/{body.get('name')}"
    context.must_write(user, repo_id)
    if body.get("type", "model") not in ("model", "dataset"):
        raise HubError(400, "only models and datasets are kept here")
    return cast(Kind, body.get("type", "model") + "s"), repo_id


def create(context: Context, request: Request) -> Reply:
    kind, repo_id = _named(context, request)
    body = request.json()
    url = {"url": _repo_url(request, kind, repo_id), "name": repo_id}
    if context.store.get(kind, repo_id) is not None:
        message = "You already created this repo"
        return json_reply({**url, "error": message}, 409, {"X-Error-Message": message})
    private = body.get("visibility") == "private" or body.get("private") is True
    context.store.create(kind, repo_id, private=private, author=context.signed_in(request).name)
    return json_reply(url)


def delete(context: Context, request: Request) -> Reply:
    kind, repo_id = _named(context, request)
    repo = context.store.get(kind, repo_id)
    if repo is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    context.store.delete(repo)
    return json_reply({})


def change_settings(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    repo.private = request.json().get("visibility") == "private"
    context.store.save(repo)
    return json_reply({"private": repo.private})


def preupload(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    tree = repo.commits[_branch_head(repo, request)].tree
    files = []
    for file in request.json().get("files", []):
        sample = base64.b64decode(file["sample"])
        lfs = is_lfs(file["path"], file["size"], sample, context.settings.lfs_over_bytes)
        known = tree.get(file["path"])
        oid = None if known is None else known.sha256 if known.lfs else known.oid
        mode = "lfs" if lfs else "regular"
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return json_reply({"files": files})


def commit(context: Context, request: Request) -> Reply:
    """All lines are read and checked before anything changes."""
    repo, user = context.writable(request)
    branch = request.groups["rev"].removeprefix("refs/heads/")
    _branch_head(repo, request)
    if request.flag("create_pr"):
        raise HubError(400, "pull requests are not kept here")
    lines = [json.loads(line) for line in request.content.splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), {})
    changes = list(_changes(context, lines))
    if request.raced:
        context.store.commit(repo, [], "A commit of somebody else", author="somebody", branch=branch)
    title, message, parent = header.get("summary", ""), header.get("description", ""), header.get("parentCommit")
    try:
        sha = context.store.commit(
            repo, changes, title, message=message, author=user.name, branch=branch, parent=parent
        )
    except StaleParentError:
        raise HubError(412, "A commit has happened since. Please refresh and try again.") from None
    except MissingPathError as error:
        raise HubError(404, f"{error} does not exist", "EntryNotFound") from None
    url = f"{_repo_url(request, repo.kind, repo.id)}/commit/{sha}"
    return json_reply({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _changes(context: Context, lines: list[dict[str, Any]]) -> Iterator[Change]:
    blobs = context.store.blobs
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            sha256 = blobs.add_bytes(base64.b64decode(value["content"]))
            yield Change(value["path"], context.store.entry(sha256, lfs=False))
        elif key == "lfsFile":
            if not blobs.has(value["oid"]):
                raise HubError(400, f"{value['path']}: LFS pointer pointed to a file that does not exist")
            yield Change(value["path"], context.store.entry(value["oid"], lfs=True))
        elif key in ("deletedFile", "deletedFolder"):
            yield Change(value["path"], folder=key == "deletedFolder")
        elif key != "header":
            raise HubError(400, f"unknown operation {key}")


def _branch_head(repo: Repo, request: Request) -> str:
    name = request.groups["rev"].removeprefix("refs/heads/")
    if name not in repo.branches:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return repo.branches[name]


def create_tag(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    sha, tag = context.commit_sha(repo, request), str(request.json().get("tag", ""))
    if tag in repo.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = sha
    context.store.save(repo)
    return json_reply({})


def delete_tag(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    if repo.tags.pop(request.groups["rev"], None) is None:
        raise HubError(404, f"Invalid rev id: {request.groups['rev']}", "RevisionNotFound")
    context.store.prune(repo)
    return json_reply({})


def create_branch(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    name = request.groups["branch"]
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: {name}")
    request.groups["rev"] = request.json().get("startingPoint", "main")
    repo.branches[name] = context.commit_sha(repo, request)
    context.store.save(repo)
    return json_reply({})


def delete_branch(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    _branch_head(repo, request)
    if request.groups["rev"] == "main":
        raise HubError(403, "The main branch cannot be deleted")
    del repo.branches[request.groups["rev"]]
    context.store.prune(repo)
    return json_reply({})


def super_squash(context: Context, request: Request) -> Reply:
    repo, user = context.writable(request)
    _branch_head(repo, request)
    context.store.squash(repo, request.groups["rev"], request.json().get("message", ""), user.name)
    return json_reply({})


def delete_lfs_files(context: Context, request: Request) -> Reply:
    repo, _ = context.writable(request)
    deletions = request.json()["deletions"]
    context.store.delete_lfs(repo, deletions["sha"], rewrite=deletions.get("rewriteHistory", True))
    return json_reply({})


def validate_yaml(_context: Context, _request: Request) -> Reply:
    return json_reply({"errors": [], "warnings": []})


ROUTES = [
    route("POST", r"/api/repos/create", create),
    route("DELETE", r"/api/repos/delete", delete),
    route("PUT", rf"{API}/settings", change_settings),
    route("POST", rf"{API}/preupload/{REV}", preupload),
    route("POST", rf"{API}/commit/{REV}", commit),
    route("POST", rf"{API}/tag/{REV}", create_tag),
    route("DELETE", rf"{API}/tag/{REV}", delete_tag),
    route("POST", rf"{API}/branch/(?P<branch>[^/]+)", create_branch),
    route("DELETE", rf"{API}/branch/{REV}", delete_branch),
    route("POST", rf"{API}/super-squash/{REV}", super_squash),
    route("POST", rf"{API}/lfs-files/batch", delete_lfs_files),
    route("POST", r"/api/validate-yaml", validate_yaml),
]
