"""Start a node that updates itself to signed releases: python scripts/launch.py --help

Standard library only: it runs any version of the project and imports none.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent / "update"))

from auto_update.child import Child
from auto_update.launcher import Launcher, Paces
from auto_update.node import Base, admitted_protocol, ask_where
from auto_update.prepare import Asked, Home, look_once
from auto_update.state import load, write_whole
from auto_update.trouble import NoUpdate, Wrong

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("miner", "validator", "owner")
POLL_S = 0.25
DESCRIPTION = """\
Run a node and keep it up to date: only with releases whose tag is signed with
a key that the running version trusts (scripts/update/allowed_signers) and
whose protocol the node's run admits; between two rounds; back to the former
version where a new one gets through no round. docs/updating.md says all of it.

examples:
  python scripts/launch.py miner --netuid 38 --wallet.hotkey H
  python scripts/launch.py --check miner --netuid 38 --wallet.hotkey H
  python scripts/launch.py --update miner --netuid 38 --wallet.hotkey H
"""
EPILOG = """\
environment:
  DT_UPDATE_URL     the repository to ask (default: the remote `origin` of this
                    checkout)
  DT_UPDATE_HOURS   within how many hours of a release a node takes it, each at
                    a time of its own (default: 24); it is looked for four
                    times in them

exit codes: the node's; of --check and --update 1 for trouble or a release that
is refused, 2 for wrong input
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Wrong(f"{message} (--help lists all options)")


def parser() -> Parser:
    made = Parser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = made.add_argument
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say which release there is, change nothing")
    what.add_argument("--update", action="store_true", help="prepare it now; the running launcher takes it at once")
    what.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)  # of the launcher itself
    add("--base", type=Path, default=ROOT, help=argparse.SUPPRESS)
    add("--base-python", type=Path, default=Path(sys.executable), help=argparse.SUPPRESS)
    add("role", choices=ROLES, help="what the node is")
    add("settings", nargs=argparse.REMAINDER, metavar="...", help="settings of the node, as neurons/ROLE.py takes them")
    return made


def main() -> int:
    options = parser().parse_args()
    base = Base(options.base, options.base_python)
    home, words = Home(base.path / ".update"), [options.role, *options.settings]
    if options.check or options.update or options.prepare:
        return find(options, base, home, words)
    return supervise(base, home, words)


def find(options: argparse.Namespace, base: Base, home: Home, words: list[str]) -> int:
    """One look. Returns 1 if there was trouble or a release was refused."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is under way is cleared up
    where = ask_where(ROOT, base.python_of(ROOT), words)
    folder = home.node(where.name)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "current"
    running = link.readlink() if link.is_symlink() else base.path
    try:
        node = next(iter(where.node_dirs()), None)
        asked = Asked(update_url(base.path), running, admitted_protocol(node), load(folder / "state.json").bad)
        found = look_once(home, asked, words, only_say=options.check, say=print)
    except ValueError as error:
        raise Wrong(str(error)) from None
    except NoUpdate as error:
        found = {"kind": "no", "line": str(error)}
    if not options.check:
        write_whole(folder / "found.json", json.dumps({**found, "now": options.update}))
    if not options.prepare:
        print(found["line"])
        if options.update and found["kind"] == "ready" and not is_locked(folder):
            print("no launcher runs this node; it is taken at the start of the next: set DT_AUTO_UPDATE=1 and start it")
    return 1 if found["kind"] == "no" else 0


def update_url(base: Path) -> str:
    """Raises Wrong."""
    if url := os.environ.get("DT_UPDATE_URL", ""):
        return url
    words = ["git", "-C", str(base), "config", "--get", "remote.origin.url"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode or not done.stdout.strip():
        raise Wrong(f"{base} has no remote `origin`; name the repository to update from in DT_UPDATE_URL")
    return done.stdout.strip()


def update_hours() -> float:
    """Raises Wrong."""
    text = os.environ.get("DT_UPDATE_HOURS", "") or "24"
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) or not float(text):
        raise Wrong(f"DT_UPDATE_HOURS: expected a number of hours such as 24, not {text!r}")
    return float(text)


def supervise(base: Base, home: Home, words: list[str]) -> int:
    hours, script = update_hours(), Path(__file__).resolve()
    rest = ["--base", str(base.path), "--base-python", str(base.python)]

    def start_look() -> Child:
        look = [sys.executable, str(script), "--prepare", *rest, *words]
        return Child(["nice", "-n", "19", *look], os.environ)

    launcher = Launcher(home, base, words, Paces(look_s=hours * 900, window_s=hours * 3600), start_look, ROOT)
    folder = launcher.memory.folder
    lock = (folder / "lock").open("ab")  # until our end, however that comes
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Wrong(f"another launcher runs this node ({folder}); stop that one first") from None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: launcher.stop(number))
    try:
        launcher.recover()
        while launcher.successor is None:
            if (code := launcher.step()) is not None:
                return code
            time.sleep(POLL_S)
    finally:
        launcher.close()
    return hand_over(launcher.successor, base, [*rest, *words])


def hand_over(version: Path, base: Base, words: list[str]) -> NoReturn:
    """Its launcher goes on as this process."""
    python = str(base.python_of(version))
    os.environ["PYTHONPATH"] = ""
    os.execv(python, [python, str(version / "scripts" / "launch.py"), *words])


def is_locked(folder: Path) -> bool:
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Wrong as error:
        sys.exit(print(f"error: {str(error).removeprefix('error: ')}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
