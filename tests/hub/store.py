"""Repositories on disk: commits, branches, tags and the LFS objects that a repository holds. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hub.blobs import Blobs, git_oid, pointer_oid, write_atomically

Kind = Literal["models", "datasets"]
_LFS_NAMES = "7z arrow bin bz2 gz h5 msgpack npy npz onnx parquet pickle pkl pt pth safetensors tar tgz xz zip zst"
LFS_SUFFIXES = tuple(f".{name}" for name in _LFS_NAMES.split())
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Entry(NamedTuple):
    """One file of a commit. `oid` is git's name for it: of the pointer if `lfs`, of the content if not."""

    sha256: str
    size: int
    oid: str
    lfs: bool


class Change(NamedTuple):
    """`entry` None deletes the file, or everything under it if `folder`."""

    path: str
    entry: Entry | None = None
    folder: bool = False


class StaleParentError(Exception):
    """The branch has moved on from the commit that the writer had read."""


class MissingPathError(Exception):
    """A change deletes what is not there."""


@dataclass
class Commit:
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    """`lfs` lists every object ever committed here, by sha256, until it is deleted for good."""

    kind: Kind
    id: str
    private: bool
    created: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    lfs: dict[str, dict[str, Any]] = field(default_factory=dict)
    serial: int = 0

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag, their full ref or a full sha names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.branches.get(name) or self.tags.get(name) or (revision if revision in self.commits else None)

    def history(self, sha: str) -> Iterator[tuple[str, Commit]]:
        """From this commit back to the first."""
        at: str | None = sha
        while at is not None:
            yield at, self.commits[at]
            at = self.commits[at].parent

    def last_change(self, sha: str, path: str) -> tuple[str, Commit]:
        """The newest commit up to `sha` that changed this file, or something under this folder."""
        below = path + "/"

        def content(commit: Commit) -> dict[str, Entry]:
            return {name: entry for name, entry in commit.tree.items() if name == path or name.startswith(below)}

        found = sha, self.commits[sha]
        for at, commit in self.history(sha):
            if content(commit) != content(found[1]):
                break
            found = at, commit
        return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _load(path: Path) -> Repo:
    raw = json.loads(path.read_bytes())
    for sha, commit in raw["commits"].items():
        commit["tree"] = {name: Entry(*entry) for name, entry in commit["tree"].items()}
        raw["commits"][sha] = Commit(**commit)
    return Repo(**raw)


class Store:
    """All repositories under `root`. Whoever reads or changes a Repo holds `lock`; each change is on disk on return.

    One process at a time owns a root: what another writes to it is seen after a restart.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.blobs = Blobs(root)
        self._repos = {(repo.kind, repo.id): repo for repo in map(_load, root.glob("repos/*/*/*.json"))}

    def get(self, kind: Kind, repo_id: str) -> Repo | None:
        return self._repos.get((kind, repo_id))

    def create(self, kind: Kind, repo_id: str, *, private: bool = False, author: str = "hub") -> Repo:
        """A new repository with the Hub's own first commit. It must not exist. Raises ValueError for a bad name."""
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
            raise ValueError(f"not a repository's name: {repo_id!r}")
        repo = Repo(kind, repo_id, private, now())
        entry = self.entry(self.blobs.add_bytes(GITATTRIBUTES), lfs=False)
        self._add(repo, "main", Commit(None, "initial commit", "", author, now(), {".gitattributes": entry}))
        self._repos[kind, repo_id] = repo
        self.save(repo)
        return repo

    def delete(self, repo: Repo) -> None:
        del self._repos[repo.kind, repo.id]
        self._file(repo).unlink()

    def entry(self, sha256: str, *, lfs: bool) -> Entry:
        """Describes content that is here already."""
        size = self.blobs.size(sha256)
        oid = pointer_oid(sha256, size) if lfs else git_oid(self.blobs.path(sha256).read_bytes())
        return Entry(sha256, size, oid, lfs)

    def commit(
        self,
        repo: Repo,
        changes: Sequence[Change],
        title: str,
        *,
        message: str = "",
        author: str = "hub",
        branch: str = "main",
        parent: str | None = None,
    ) -> str:
        """All changes or none. Raises StaleParentError if `parent` is given and is not the branch's head, and
        MissingPathError. The branch must exist."""
        head = repo.branches[branch]
        if parent is not None and parent != head:
            raise StaleParentError(head)
        tree = dict(repo.commits[head].tree)
        for change in changes:
            _apply(tree, change)
        sha = self._add(repo, branch, Commit(head, title, message, author, now(), tree))
        self.save(repo)
        return sha

    def put(
        self,
        kind: Kind,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        message: str = "put",
        private: bool = False,
        tag: str | None = None,
    ) -> str:
        """Commits local content to main without HTTP, creating the repository if need be. Returns the commit's sha."""
        stored = {
            path: self.blobs.add_bytes(content) if isinstance(content, bytes) else self.blobs.add_file(content)
            for path, content in files.items()
        }
        with self.lock:
            repo = self.get(kind, repo_id) or self.create(kind, repo_id, private=private)
            changes = [
                Change(path, self.entry(sha256, lfs=is_lfs(path, self.blobs.size(sha256))))
                for path, sha256 in stored.items()
            ]
            sha = self.commit(repo, changes, message)
            if tag is not None:
                repo.tags[tag] = sha
                self.save(repo)
            return sha

    def squash(self, repo: Repo, branch: str, title: str, author: str) -> None:
        """The branch becomes one commit with its present content. What no branch or tag reaches is gone."""
        tree = dict(repo.commits[repo.branches[branch]].tree)
        self._add(repo, branch, Commit(None, title, "", author, now(), tree))
        self.prune(repo)

    def prune(self, repo: Repo) -> None:
        """Forgets the commits that no branch or tag reaches, as a repository does some time after a squash."""
        heads = [*repo.branches.values(), *repo.tags.values()]
        kept = {sha for head in heads for sha, _ in repo.history(head)}
        repo.commits = {sha: commit for sha, commit in repo.commits.items() if sha in kept}
        self.save(repo)

    def delete_lfs(self, repo: Repo, oids: Sequence[str], *, rewrite: bool) -> None:
        """Deletes objects for good. `rewrite` also takes their pointers out of every commit, so shas change."""
        gone = set(oids)
        repo.lfs = {sha256: item for sha256, item in repo.lfs.items() if sha256 not in gone}
        if rewrite:
            self._rewrite(repo, gone)
        self.save(repo)
        repos = self._repos.values()
        files = {f.sha256 for other in repos for c in other.commits.values() for f in c.tree.values() if not f.lfs}
        elsewhere = files.union(*(other.lfs for other in repos))
        for sha256 in gone - elsewhere:
            self.blobs.delete(sha256)

    def save(self, repo: Repo) -> None:
        write_atomically(self._file(repo), json.dumps(vars(repo), default=vars).encode())

    def _file(self, repo: Repo) -> Path:
        return self.root / "repos" / repo.kind / f"{repo.id}.json"

    def _add(self, repo: Repo, branch: str, commit: Commit) -> str:
        sha = _name(repo, commit)
        repo.commits[sha] = commit
        repo.branches[branch] = sha
        for path, entry in commit.tree.items():
            if entry.lfs and entry.sha256 not in repo.lfs:
                pushed = {"filename": path, "size": entry.size, "pushedAt": commit.date, "ref": f"refs/heads/{branch}"}
                repo.lfs[entry.sha256] = pushed
        return sha

    def _rewrite(self, repo: Repo, gone: set[str]) -> None:
        new: dict[str | None, str | None] = {None: None}
        old, repo.commits = repo.commits, {}
        for sha, commit in old.items():  # a parent always comes before its children
            tree = {path: entry for path, entry in commit.tree.items() if not (entry.lfs and entry.sha256 in gone)}
            parent = new[commit.parent]
            if tree == commit.tree and parent == commit.parent:
                new[sha] = sha
            else:
                commit.tree, commit.parent = tree, parent
                new[sha] = _name(repo, commit)
            repo.commits[str(new[sha])] = commit
        repo.branches = {name: str(new[sha]) for name, sha in repo.branches.items()}
        repo.tags = {name: str(new[sha]) for name, sha in repo.tags.items()}


def is_lfs(path: str, size: int, sample: bytes = b"", over_bytes: int = 10 << 20) -> bool:
    """Whether the Hub keeps such a file as a pointer to an object."""
    return size > 0 and (Path(path).suffix in LFS_SUFFIXES or size > over_bytes or b"\0" in sample)


def _apply(tree: dict[str, Entry], change: Change) -> None:
    if change.entry is not None:
        tree[change.path] = change.entry
        return
    below = change.path.rstrip("/") + "/"
    doomed = [path for path in tree if path.startswith(below)] if change.folder else [change.path]
    if not doomed or not all(path in tree for path in doomed):
        raise MissingPathError(change.path)
    for path in doomed:
        del tree[path]


def _name(repo: Repo, commit: Commit) -> str:
    """Without the time, so that the same steps give the same shas; the serial number keeps equal commits apart."""
    repo.serial += 1
    facts = [repo.kind, repo.id, repo.serial, commit.parent, commit.title, commit.message, sorted(commit.tree.items())]
    return hashlib.sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest()
