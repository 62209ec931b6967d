"""A small product with releases: real git repositories, real SSH keys, a node of thirty lines that settles rounds."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from auto_update.tags import INIT, KEYS, SIGNER

ROOT = Path(__file__).parents[2]
NODE = """\
import json, os, signal, sqlite3, sys, time
if "--help" in sys.argv: sys.exit(0)
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
how, node = open(here + "/behaviour").read().strip(), sys.argv[1] + "/nodes/h"
left = []
signal.signal(signal.SIGUSR1, lambda *_: left.append(1))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
os.makedirs(node, exist_ok=True)
open(node + "/lock", "w").write(f"{os.getpid()}\\n{here}\\n")
open(node + "/started", "a").write(os.path.basename(here) + "\\n")
if how == "crash": sys.exit(1)
if how == "refuse": sys.exit(2)
db = sqlite3.connect(node + "/journal.sqlite", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, doc TEXT NOT NULL)")
schema = db.execute("PRAGMA user_version").fetchone()[0]
if how == "good" and schema > 1: sys.exit("written by a newer version")
if how.startswith("hang"): db.execute("PRAGMA user_version=2")
def tell(**event):
    line = json.dumps({"time": time.time(), **event}, separators=(",", ":"))
    open(node + "/events.jsonl", "a").write(line + "\\n")
verdict = json.load(open(sys.argv[1] + "/verdict.json"))
tell(event="verdict", **verdict)
while not left:
    time.sleep(0.02)
    if how == "good" and not os.path.exists(sys.argv[1] + "/stands_still"):
        n = (db.execute("SELECT max(round) FROM rounds").fetchone()[0] or 0) + 1
        db.execute("INSERT INTO rounds VALUES (?, '{}')", (n,))
        tell(event="round", round=n)
"""
WHERE = """\
import json, sys
where = {"name": "1-w-h", "hotkey": "ab", "run_dir": sys.argv[2], "open": False, "folder": "nodes/h"}
print(json.dumps({**where, "json_lines": False}))
"""
SETUP = 'mkdir -p "$DT_VENV/bin" && ln -sf {python} "$DT_VENV/bin/python" && echo made > "$DT_VENV/.stamp"\n'


class Product:
    """In `folder`: origin (the server), clone (what an operator has), run (its run directory), keys."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.clone, self.run, self._keys = (folder / n for n in ("origin", "clone", "run", "keys"))
        for path in (self.origin, self.run / "nodes" / "h", self._keys):
            path.mkdir(parents=True)
        (self.run / "manifest.json").write_text('{"protocol_version": 4}')
        self.verdict("all well", 461)
        self.git("init", "--quiet", "-b", "main")
        self.release_file("neurons/miner.py", NODE)
        self.release_file("scripts/update/where.py", WHERE)
        self.release_file("scripts/setup.sh", SETUP.format(python=sys.executable))
        for name in ("pyproject.toml", "constraints.txt"):
            self.release_file(name, "")
        self.trust("maintainer")
        self.release("0.1.0", tag=False)

    def key(self, name: str) -> Path:
        """Made when it is first asked for; thrown away with the folder."""
        path = self._keys / name
        if not path.exists():
            words = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path))
            subprocess.run(words, check=True)
        return path

    def trust(self, *names: str, signer: str = SIGNER) -> None:
        """From the next release on."""
        keys = [self.key(name).with_suffix(".pub").read_text() for name in names]
        self.release_file(KEYS, "# keys\n" + "".join(f'{signer} namespaces="git" {key}' for key in keys))

    def release_file(self, name: str, text: str) -> None:
        path = self.origin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def release(
        self,
        version: str,
        *,
        key: str = "maintainer",
        how: str = "good",
        protocol: int = 4,
        tag: bool = True,
        **more: Any,
    ) -> None:
        self.release_file(INIT, f'__version__ = "{version}"\nPROTOCOL_VERSION = {protocol}\n')
        self.release_file("behaviour", how)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", version)
        if tag:
            self.tag(more.get("name", f"v{version}"), key=key, force=more.get("force", False))

    def tag(self, name: str, *, key: str | None, force: bool = False) -> None:
        signed = ("-s",) if key else ("-a",)
        config = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={self.key(key or 'maintainer')}")
        self.git(*config, "tag", *signed, *(("-f",) if force else ()), "-m", name, name)

    def git(self, *words: str) -> str:
        who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            who |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@example.org"}
        done = subprocess.run(
            ("git", *words), cwd=self.origin, env=os.environ | who, check=True, capture_output=True, text=True
        )
        return done.stdout

    def install(self, *, launcher: bool = False) -> Path:
        """The operator's clone, at what is released now."""
        if launcher:
            (self.origin / "scripts" / "launch.py").write_bytes((ROOT / "scripts" / "launch.py").read_bytes())
            copied = ROOT / "scripts" / "update" / "auto_update"
            into = self.origin / "scripts" / "update" / "auto_update"
            shutil.copytree(copied, into, ignore=shutil.ignore_patterns("__pycache__"))
            self.release_file(".gitignore", "__pycache__\n.update\n")
            self.git("add", "--all")
            self.git("commit", "--quiet", "-m", "launcher")
        self.git("clone", "--quiet", str(self.origin), str(self.clone))
        return self.clone

    # --- of the node

    @property
    def node(self) -> Path:
        return self.run / "nodes" / "h"

    def verdict(self, word: str, spec_version: int) -> None:
        (self.run / "verdict.json").write_text(json.dumps({"word": word, "spec_version": spec_version}))

    def started(self) -> list[str]:
        """The versions that were started, in order."""
        with suppress(FileNotFoundError):
            return (self.node / "started").read_text().split()
        return []

    def verdicts(self) -> int:
        """How many nodes began to listen to the chain."""
        with suppress(FileNotFoundError):
            return (self.node / "events.jsonl").read_text().count("verdict")
        return 0

    def last_round(self) -> int:
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.node / "journal.sqlite")) as db:
            return db.execute("SELECT max(round) FROM rounds").fetchone()[0] or 0
        return 0
