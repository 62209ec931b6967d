"""The page's documents, kept up to date by a thread that follows the files of a run."""

from __future__ import annotations

import gzip
import json
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distributed_training.dashboard.about import About, crashed, introduce, read_about, stamp
from distributed_training.dashboard.page import ChainSeen, Seen, run_document
from distributed_training.dashboard.person import uid_document
from distributed_training.dashboard.reading import EventFiles
from distributed_training.dashboard.round import round_document
from distributed_training.dashboard.sampling import Sampler
from distributed_training.stillness import clocks

STATIC = Path(__file__).with_name("static")  # what runs in the browser
INDEX = STATIC / "index.html"
POLL_S = 0.25
ABOUT_S = 2.0  # between two looks at what lies beside the events
LEAST_SILENCE_S = 120.0
KEPT = 128  # documents that were made before
HIDDEN = "why is in the log of who writes this page"
_WANTED = re.compile(r"(run|chain)\.json|(round|uid)/(\d{1,10})\.json")


class Site:
    """`document` may be called by any thread; `follow` runs in one of its own until `stop`."""

    def __init__(self, run_dir: Path | None, files: Iterable[Path] = (), *, live: bool = True) -> None:
        self._run_dir, self._live = run_dir, live
        self.files = EventFiles(run_dir, tuple(files), public=not live)
        self.about = About()
        self.chain: ChainSeen | None = None
        self.chain_trouble = ""
        self.shares: dict[int, tuple[Mapping[int, Mapping[int, float]], Mapping[int, float]]] = {}  # by round
        self.sample: Sampler | None = None
        self._lock, self._stopped, self.ready = threading.Lock(), threading.Event(), threading.Event()
        self._others = 0  # changes of what is not folded
        self._looked: tuple[int, ...] = ()  # what lay beside the events then
        self._state, self._crashed = "empty", frozenset[str]()
        self._name = secrets.token_hex(4)  # another process may have used the same numbers
        self._seen: tuple[tuple[int, int], Seen] | None = None
        self._made: dict[str, tuple[str, bytes]] = {}
        self._thread = threading.Thread(target=self.follow, name="events", daemon=True)

    # --- following ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self.sample is not None:
            self.sample.close()

    def wait(self, seconds: float) -> None:
        """Until then, or until it is stopped."""
        self._stopped.wait(seconds)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def follow(self) -> None:
        looked = float("-inf")
        while not self.stopped:
            _, now = clocks()
            if now - looked > ABOUT_S:
                self.look()
                looked = now
            if not self.files.read(self._lock):
                if not self.ready.is_set():
                    self.look()
                    with self._lock:
                        self.ready.set()
                        self._others += 1
                self._stopped.wait(POLL_S)

    def read_all(self) -> None:
        """Everything that is there now, at once."""
        self.look()
        while self.files.read(self._lock):
            pass
        self.look()
        self.ready.set()

    def look(self) -> None:
        """At what lies beside the events, and at who lives."""
        folder, about = self._run_dir, self.about
        if folder is not None and folder.is_dir():  # else what is known stays
            looked = stamp(folder)
            if looked != self._looked or about.num_params is None:
                about, self._looked = read_about(folder), looked
        with self._lock:
            fold = self.files.fold
            introduce(fold, about)
            nodes = tuple(fold.nodes.values())
        gone = frozenset() if folder is None else frozenset(n.name for n in nodes if crashed(folder, n))
        state = self._state_of(about, gone)
        with self._lock:
            if (about, gone, state) != (self.about, self._crashed, self._state):
                self.about, self._crashed, self._state = about, gone, state
                self._others += 1

    def tell_chain(self, seen: ChainSeen | None, shares: Mapping[int, Any], trouble: str = "") -> None:
        """What the chain's watcher saw; None: no more than before, and why."""
        with self._lock:
            now = (seen or self.chain, dict(shares), trouble)
            if now != (self.chain, self.shares, self.chain_trouble):
                self.chain, self.shares, self.chain_trouble = now
                self._others += 1

    def _state_of(self, about: About, gone: frozenset[str]) -> str:
        nodes = [n for n in self.files.fold.nodes.values() if n.last_seen is not None]
        if not nodes:
            return "empty" if self.chain is None else "chain"
        if about.summarised or all(n.ended for n in nodes):
            return "ended"
        if all(n.ended or n.killed or n.name in gone for n in nodes):
            return "crashed"
        newest = max(n.last_seen or 0.0 for n in nodes)
        return "silent" if clocks()[0] - newest > self._silence_s() else "running"

    def _silence_s(self) -> float:
        """Two rounds without a word."""
        known = [r.last - r.first for r in list(self.files.fold.rows.values())[-5:] if r.last and r.first]
        return max(LEAST_SILENCE_S, 2 * max(known, default=0.0))

    # --- documents ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self.files.fold.revision + self._others

    def document(self, path: str) -> tuple[str, bytes] | None:
        """(ETag, gzip of the JSON) of a path under data/; None: there is none."""
        match = _WANTED.fullmatch(path)
        if match is None:
            return None
        with self._lock:
            number = int(match[3] or 0)
            tag = f"{self._name}-{self.revision}"
            made = self._made.get(path)
            if made is None or made[0] != tag:
                document = self._make(match[1] or match[2], number)
                if document is None and path != "chain.json":
                    return None
                if len(self._made) >= KEPT:
                    self._made.clear()
                made = self._made[path] = (tag, gzip.compress(encode(document), 3, mtime=0))
            return made

    def plain(self, kind: str, number: int = 0) -> Any:
        """A document as JSON values; None: there is none."""
        with self._lock:
            return self._make(kind, number)

    def change(self) -> dict[str, Any]:
        """What the stream says of now."""
        with self._lock:
            newest, keys = self.files.fold.ahead(), ("step", "loss", "tokens_per_s")
            nodes = [n for n in self.files.fold.nodes.values() if n.uid is not None and n.step is not None]
            steps = {str(n.uid): {key: getattr(n, key) for key in keys} for n in nodes if not n.ended}
            return {
                "revision": self.revision,
                "round": None if newest is None else newest.round,
                "phase": None if newest is None else newest.phase,
                "step": steps,
            }

    def _seen_now(self) -> Seen:
        """One for all documents of a moment."""
        wall, awake = clocks()
        moment, fold = (self.revision, int(awake / ABOUT_S)), self.files.fold
        if self._seen is None or self._seen[0] != moment:
            by_uid = {node.uid: node for node in reversed(fold.nodes.values()) if node.uid is not None}
            trouble = self.chain_trouble if self._live else self.chain_trouble and HIDDEN
            made = Seen(fold, self.about, self.chain, self._state, wall, by_uid, trouble, self._crashed,
                        self._silence_s())  # fmt: skip
            self._seen = (moment, made)
        return self._seen[1]

    def _make(self, kind: str, number: int) -> Any:
        seen = self._seen_now()
        if kind == "run":
            document = run_document(seen, live=self._live, sample=self.sample is not None and self.sample.possible)
            document["now"] |= {"unreadable_lines": self.files.bad_lines, "reading": not self.ready.is_set()}
            return document | {"revision": self.revision}
        if kind == "chain":
            return None if self.chain is None else self.chain.document
        if kind == "uid":
            incentives = {index: incentive for index, (_, incentive) in self.shares.items()}
            return uid_document(seen, number, incentives)
        weights, incentive = self.shares.get(number, ({}, {}))
        return round_document(number, self.files.of_round(number), weights, incentive)


def encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
