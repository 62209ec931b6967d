"""From the update server to a version that is ready beside the running one. A process of its own, at low priority.

Everything it leaves is whole: a version has its name only when its files, its environment and its start were tried.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from auto_update import tags
from auto_update.bounded import run
from auto_update.git import Git
from auto_update.node import ask_where, command, environment_of
from auto_update.state import write_whole
from auto_update.trouble import NoUpdate, Refused, Trouble, Wrong

MOST_TRIED = 8  # releases, newest first, until one is good
SETUP_S, HELP_S = 3600.0, 120.0
ROOM_BYTES, ENVIRONMENT_BYTES = 500 << 20, 2500 << 20
RELEASE = ".release.json"  # in a version's folder
PINS = ("pyproject.toml", "constraints.txt", "scripts/setup.sh")  # what an environment depends on


@dataclass(frozen=True, slots=True)
class Home:
    """Where versions are kept: shared by the nodes of a checkout."""

    root: Path

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One prepares at a time; what a killed one left is cleared."""
        self.versions.mkdir(parents=True, exist_ok=True)
        self.environments.mkdir(exist_ok=True)
        with (self.root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in (*self.versions.glob("*.part"), *self.root.glob("fetch-*")):
                shutil.rmtree(left, ignore_errors=True)
            yield


@dataclass(frozen=True, slots=True)
class Release:
    tag: str
    commit: str
    tag_object: str
    about: tags.About


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose keys and version decide, and what the node needs."""

    url: str
    running: Path  # folder of the running version
    protocol: int  # of the node's run
    bad: dict[str, str]


def find(git: Git, asked: Asked, seen: dict[str, str]) -> tuple[Release | None, list[str]]:
    """The newest release that may be taken, and the line of each newer one that may not. Raises Trouble.

    seen: tag -> tag object of every release that was ever found good; is added to."""
    if not tags.has_keys(asked.running):
        raise Trouble(f"no release key is trusted yet ({asked.running / tags.KEYS}): auto-update is off")
    mine = tags.about_folder(asked.running).version
    versions = {v: name for name in git.remote_tags(asked.url) if (v := tags.Version.of_tag(name)) is not None}
    lines = list[str]()
    for version in sorted((v for v in versions if v > mine), reverse=True)[:MOST_TRIED]:
        name = versions[version]
        try:
            if name in asked.bad:
                raise Refused(f"{name} is not tried again: {asked.bad[name]}")
            release = _checked(git, asked, name, version, seen)
        except Refused as error:
            lines.append(str(error))
            continue
        return release, lines
    return None, lines


def _checked(git: Git, asked: Asked, name: str, version: tags.Version, seen: dict[str, str]) -> Release:
    sha = git.fetch_tag(asked.url, name)
    tag = tags.parse_tag(name, git.tag_object(sha))
    tags.verify(tag, asked.running / tags.KEYS)
    if seen.setdefault(name, sha) != sha:
        raise Refused(f"{name} is refused: it was moved since it was first seen ({seen[name][:12]}, now {sha[:12]})")
    about = tags.about(git.file(tag.commit, tags.INIT), name)
    if about.version != version:
        raise Refused(f"{name} is refused: its files are those of {about.version}")
    if about.protocol != asked.protocol:
        raise Refused(f"{name} is refused: it speaks protocol {about.protocol}, this node's run {asked.protocol}")
    return Release(name, tag.commit, sha, about)


def prepare(home: Home, git: Git, release: Release, words: Sequence[str], say: Callable[[str], None]) -> Path:
    """Its folder, whole and tried. words: the node's role and settings. Raises NoUpdate."""
    folder, part = home.versions / release.tag, home.versions / f"{release.tag}.part"
    size = git.check_tree(release.commit, release.tag)
    if (folder / RELEASE).is_file():
        known = json.loads((folder / RELEASE).read_text("utf-8"))
        if known["tag_object"] != release.tag_object:
            raise Refused(f"{release.tag} is refused: another one of that name is in {folder}")
    else:
        need(home.root, ROOM_BYTES + 2 * size, release.tag)
        say(f"preparing {release.tag} beside the running version")
        git.export(release.commit, part)
        (part / ".venv").symlink_to(_environment(home, part, release.tag))
        record = {"tag": release.tag, "commit": release.commit, "tag_object": release.tag_object}
        write_whole(part / RELEASE, json.dumps(record))
        part.rename(folder)
    _try(folder, release.tag, words)
    return folder


def need(folder: Path, wanted: int, tag: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise Trouble(f"{tag} needs {wanted / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; make room there")


def _environment(home: Home, version: Path, tag: str) -> str:
    """Path, relative to the version, of an environment made by the version's own set-up; releases that pin the same
    share one. It is named by what it depends on, so it never changes under a version that uses it."""
    digest = hashlib.sha256(os.environ.get("DT_TORCH", "").encode())
    for name in PINS:
        digest.update((version / name).read_bytes())
    name = digest.hexdigest()[:16]
    place = home.environments / name
    if not (place / ".stamp").is_file():
        need(home.root, ENVIRONMENT_BYTES, tag)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    words = ("bash", "-c", 'source "$1/scripts/setup.sh"', "setup", version)
    done = run(words, timeout_s=SETUP_S, environment=kept | {"DT_VENV": str(place)}, cwd=version)
    if done.code:
        raise Trouble(f"the environment of {tag} could not be made: {done.said.removeprefix('error: ')}")
    return f"../../environments/{name}"


def _try(version: Path, tag: str, words: Sequence[str]) -> None:
    """It starts at all, and takes this node's settings. Raises Refused."""
    python = version / ".venv" / "bin" / "python"
    environment = environment_of(version, python)
    done = run((*command(version, python, words[:1]), "--help"), timeout_s=HELP_S, environment=environment)
    if done.code:
        raise Refused(f"{tag} is refused: it does not start here: {done.said}")
    try:
        ask_where(version, python, words)
    except Wrong as error:
        raise Refused(f"{tag} is refused: it does not take this node's settings: {error}") from None


def look_once(home: Home, asked: Asked, words: Sequence[str], *, only_say: bool, say: Callable[[str], None]) -> dict:
    """What there is, as the launcher reads it: kind (ready, nothing, no), line; of one that is ready tag and path."""
    try:
        with home.locked(), tempfile.TemporaryDirectory(prefix="fetch-", dir=home.root) as fetched:
            path = home.root / "seen.json"
            seen = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            git = Git(Path(fetched))
            release, lines = find(git, asked, seen)
            write_whole(path, json.dumps(seen, indent=1))
            if release is None:
                return {
                    "kind": "no" if lines else "nothing",
                    "line": lines[0] if lines else "no newer release is there",
                }
            if only_say:
                return {"kind": "nothing", "line": f"{release.tag} ({release.commit[:12]}) is signed and admitted"}
            folder = prepare(home, git, release, words, say)
            return {"kind": "ready", "line": f"{release.tag} is ready", "tag": release.tag, "path": str(folder)}
    except NoUpdate as error:
        return {"kind": "no", "line": str(error)}
    except OSError as error:
        return {"kind": "no", "line": f"no update: {error.filename or home.root}: {error.strerror}"}


def clear(home: Home) -> None:
    """Versions that no node of this home runs, returns to or takes next, and environments that none of them has."""
    with home.locked():
        nodes = "".join(path.read_text("utf-8") for path in home.root.glob("nodes/*/state.json"))
        used = {path.readlink().name for path in home.root.glob("nodes/*/current") if path.is_symlink()}
        for version in home.versions.iterdir():
            if version.name not in used and json.dumps(str(version)) not in nodes:
                gone = version.with_name(f"{version.name}.part")
                version.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        kept = {(version / ".venv").readlink().name for version in home.versions.iterdir()}
        for environment in home.environments.iterdir():
            if environment.name not in kept:
                shutil.rmtree(environment, ignore_errors=True)
