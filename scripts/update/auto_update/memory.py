"""What a launcher says and keeps: lines on stderr, its state.json, update.json beside the node's own files."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from auto_update.state import State, ended, load, write_whole
from auto_update.trouble import Wrong


class Memory:
    def __init__(self, folder: Path, *, json_lines: bool) -> None:
        """Raises Wrong for a state file that is not ours."""
        self.folder, self._json = folder, json_lines
        self._told = ""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.state = load(folder / "state.json")
        except ValueError as error:
            raise Wrong(f"{error}; delete {folder} and the node starts in the checkout's own version") from None

    def save(self, state: State) -> None:
        """Before the act that it announces. Raises OSError; then what was saved before holds."""
        write_whole(self.folder / "state.json", json.dumps(asdict(state), indent=1))
        self.state = state

    def end(self, **changes: object) -> None:
        self.save(ended(self.state, **changes))

    def say(self, line: str, node: Path | None = None) -> None:
        """One line, which `status` shows too. Never raises."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        if self._json:
            record = {"event": line, "level": "info", "logger": "launcher", "timestamp": f"{stamp}Z"}
            print(json.dumps(record), file=sys.stderr, flush=True)
        else:
            print(f"{stamp}Z launcher: {line}", file=sys.stderr, flush=True)
        with suppress(OSError):
            self.save(replace(self.state, line=line, time=now))
        if node is not None:
            with suppress(OSError):
                doc = {"phase": self.state.phase, "line": line, "time": now, "bad": self.state.bad}
                write_whole(node / "update.json", json.dumps(doc))

    def trouble(self, error: OSError) -> None:
        """Of this machine, said once until it is another or has passed."""
        line = f"{error.filename or self.folder}: {error.strerror}; the node runs on"
        if line != self._told:
            self.say(line)
        self._told = line

    def no_trouble(self) -> None:
        self._told = ""
