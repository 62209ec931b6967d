"""git with no configuration but ours: a repository of its own for each look, nothing of the operator's or the system's.

What a server sends is bounded in time and size and checked by fsck before it is kept; hooks, submodules, replaced
objects, credential prompts and every protocol but https, ssh and files are off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from auto_update.bounded import Done, run
from auto_update.trouble import Refused, Trouble

ASK_S, FETCH_S, LOCAL_S = 60.0, 600.0, 120.0
MAX_PACK_BYTES = 256 << 20  # one file of it
MAX_TREE_BYTES, MAX_TREE_FILES = 256 << 20, 20_000
PLAIN = ("100644", "100755")  # modes of files; no links, no submodules
SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.fsmonitor": "false",
    "fetch.fsckObjects": "true",
    "transfer.fsckObjects": "true",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "http.followRedirects": "initial",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
}
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "GIT_ALLOW_PROTOCOL": "https:ssh:file",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=30",
    "LC_ALL": "C",
}


class Git:
    """A bare repository in `folder`, which must be new and empty."""

    def __init__(self, folder: Path, *, ask_s: float = ASK_S, fetch_s: float = FETCH_S) -> None:
        self._folder, self._ask_s, self._fetch_s = folder, ask_s, fetch_s
        self._git("init", "--quiet", "--bare", "--template=", str(folder))

    def remote_tags(self, url: str) -> dict[str, str]:
        """name -> hash of what the server says it has, by its word alone. Raises Trouble."""
        done = self._try("ls-remote", "--tags", "--refs", "--", url, "refs/tags/v*", timeout_s=self._ask_s)
        if done.code:
            raise Trouble(f"the update server {url} does not answer: {done.said}")
        pairs = [line.split("\t") for line in done.out.decode(errors="replace").splitlines()]
        return {pair[1].removeprefix("refs/tags/"): pair[0] for pair in pairs if len(pair) == 2}

    def fetch_tag(self, url: str, name: str) -> str:
        """Hash of the tag object that the server gives under this name. Raises Trouble, Refused: not annotated."""
        ref = f"refs/candidates/{name}"
        words = ("fetch", "--quiet", "--no-tags", "--depth=1", "--no-write-fetch-head", "--", url)
        done = self._try(*words, f"+refs/tags/{name}:{ref}", timeout_s=self._fetch_s)
        if done.code:
            raise Trouble(f"the update server {url} does not give {name}: {done.said}")
        if self._git("cat-file", "-t", ref).strip() != b"tag":
            raise Refused(f"{name} is refused: it is not signed (a plain tag)")
        return self._git("rev-parse", ref).decode().strip()

    def tag_object(self, sha: str) -> bytes:
        return self._git("cat-file", "tag", sha)

    def file(self, commit: str, path: str) -> bytes:
        return self._git("cat-file", "blob", f"{commit}:{path}")

    def check_tree(self, commit: str, name: str) -> int:
        """Bytes of its files. Raises Refused for what a release does not have: links, submodules, too much."""
        total = count = 0
        for line in self._git("ls-tree", "-r", "-l", "-z", "--full-tree", commit).split(b"\0"):
            if not line:
                continue
            mode, _, _, size = line.partition(b"\t")[0].split()
            if mode.decode() not in PLAIN:
                raise Refused(f"{name} is refused: it holds a link or a submodule")
            total, count = total + int(size), count + 1
        if total > MAX_TREE_BYTES or count > MAX_TREE_FILES:
            raise Refused(f"{name} is refused: {count} files of {total >> 20} MiB are more than a release has")
        return total

    def export(self, commit: str, folder: Path) -> None:
        """The files of a commit into a new folder, without a repository."""
        folder.mkdir()
        index = {"GIT_INDEX_FILE": str(self._folder / "export.index"), "GIT_WORK_TREE": str(folder)}
        self._git("read-tree", commit, environment=index)
        self._git("checkout-index", "--all", f"--prefix={folder}/", environment=index)

    def _git(self, *words: str, environment: Mapping[str, str] | None = None) -> bytes:
        done = self._try(*words, timeout_s=LOCAL_S, environment=environment)
        if done.code:
            raise Trouble(f"git {words[0]} failed: {done.said}")
        return done.out

    def _try(self, *words: str, timeout_s: float, environment: Mapping[str, str] | None = None) -> Done:
        settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        where = {} if words[0] == "init" else {"GIT_DIR": str(self._folder)}
        return run(
            ("git", *settings, *words),
            timeout_s=timeout_s,
            environment=kept | ENVIRONMENT | where | dict(environment or {}),
            cwd=self._folder,
            max_file_bytes=MAX_PACK_BYTES,
        )
