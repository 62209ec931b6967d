"""One file of the Hub to disk, going on after broken connections and restarts. What arrives is hashed, always."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff, httpx

from distributed_training.checkpoints.description import FileFacts
from distributed_training.errors import LocalFault, WireError
from distributed_training.locks import Lock

log = logging.getLogger(__name__)

MAX_TRIES = 6  # in a row without a byte
_PAUSE_S = 0.5
PARTIAL = ".incomplete"
_OURS = re.compile(r"[0-9a-f]{32}")


class _BrokeOff(Exception):
    """Ask again for the rest."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The least that has to arrive: a server that drips would hold us for ever."""

    bytes_per_s: float = 64_000.0
    window_s: float = 60.0  # over which it is measured


class _Watch:
    """Raises ConnectionError once a window has brought less than the pace. Not counted: waiting for an answer to begin,
    which has an end of its own."""

    def __init__(self, pace: Pace) -> None:
        self._pace, self._since, self._bytes = pace, time.monotonic(), 0

    def waited(self, seconds: float) -> None:
        self._since += seconds

    def arrived(self, count: int) -> None:
        self._bytes += count
        past_s = time.monotonic() - self._since
        if past_s < self._pace.window_s:
            return
        if self._bytes < self._pace.bytes_per_s * past_s:
            raise ConnectionError(f"only {self._bytes / past_s / 1000:.1f} kB/s arrived in {past_s:.0f} s")
        self._since, self._bytes = self._since + past_s, 0


def download(url: str, headers: Mapping[str, str], path: Path, facts: FileFacts, pace: Pace | None = None) -> None:
    """`path` is a file with this sha256 and size when it returns; what a former try left is used if it fits.

    Raises WireError for other bytes, ConnectionError below the pace (default: `Pace()`), and what huggingface_hub's
    session raises.
    """
    watch = _Watch(pace or Pace())
    if path.exists() and _is(path, facts):
        return
    path.unlink(missing_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    resumed = partial.exists()
    _fill(url, headers, partial, facts.num_bytes, watch)
    if not _is(partial, facts) and resumed:  # of the part that was there, nothing was known
        partial.unlink()
        _fill(url, headers, partial, facts.num_bytes, watch)
    if not _is(partial, facts):
        partial.unlink()
        raise WireError(f"{path.name}: the bytes that came have another sha256 than {facts.sha256[:16]}...")
    partial.replace(path)


def small_file(url: str, headers: Mapping[str, str], limit: int, pace: Pace | None = None) -> bytes:
    """The whole of a file of at most `limit` bytes. Raises WireError for a longer one, otherwise as `download`."""
    data, watch = bytearray(), _Watch(pace or Pace())
    with _open(url, headers, watch) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            watch.arrived(len(chunk))
            data += chunk
            if len(data) > limit:
                raise WireError(f"{url}: more than {limit} bytes")
    return bytes(data)


_claimed: dict[Path, Lock] = {}  # folders that this process has a lock on, as long as it lives


def claim(folder: Path) -> None:
    """This process alone fetches into `folder` from now on: another one would delete what it reads. Raises ConfigError,
    LocalFault."""
    folder = folder.absolute()
    if folder in _claimed:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFault(f"cannot use {folder}: {error.strerror}") from None
    _claimed[folder] = Lock(folder, "wait, or give this one a folder of its own (--cache DIR)", name=".lock")


def make_room(folder: Path, num_bytes: int) -> None:
    """An empty or half filled `folder` for `num_bytes`. Those beside it with names of the same kind, 32 hex digits, go;
    a person may have named a folder with other things in it. Raises LocalFault, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other.name != folder.name and _OURS.fullmatch(other.name) and other.is_dir():
            shutil.rmtree(other)
    have, free = sum(path.stat().st_size for path in folder.iterdir()), shutil.disk_usage(folder).free
    if have + free < num_bytes:
        raise LocalFault(f"{num_bytes / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} GB are free")


def _fill(url: str, headers: Mapping[str, str], partial: Path, num_bytes: int, watch: _Watch) -> None:
    tries = 0
    while (have := _size(partial)) != num_bytes:
        if have > num_bytes:
            partial.unlink()
            continue
        try:
            _append(url, headers, partial, have, num_bytes, watch)
        except (_BrokeOff, httpx.TransportError) as error:
            tries = tries + 1 if _size(partial) <= have else 1
            if tries >= MAX_TRIES:
                raise ConnectionError(f"it broke off {tries} times in a row: {error}") from error
            log.debug("%s: %s; going on at %d", partial.name, error, _size(partial))
            time.sleep(_PAUSE_S * tries)
    partial.touch()  # an empty file needs no request


def _append(url: str, headers: Mapping[str, str], partial: Path, have: int, num_bytes: int, watch: _Watch) -> None:
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with _open(url, asked, watch) as response:
        if response.status_code == 403 and response.history:
            raise _BrokeOff("the signed address has expired")
        hf_raise_for_status(response)
        whole = response.status_code != 206  # the server ignores ranges
        with partial.open("wb" if whole else "ab") as file:
            at = 0 if whole else have
            for chunk in response.iter_bytes():  # as they come: a chunk of a given size may never be full
                watch.arrived(len(chunk))
                at += len(chunk)
                if at > num_bytes:
                    raise WireError(f"{partial.stem}: more than the {num_bytes} bytes that were announced")
                file.write(chunk)
    if at < num_bytes:
        raise _BrokeOff(f"it ended after {at} of {num_bytes} bytes")


@contextmanager
def _open(url: str, headers: Mapping[str, str], watch: _Watch):
    """Errors of the connection come up at once: only here is it known what has arrived."""
    asked_at = time.monotonic()
    with http_stream_backoff("GET", url, headers=dict(headers), retry_on_exceptions=()) as response:
        watch.waited(time.monotonic() - asked_at)
        yield response


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is(path: Path, facts: FileFacts) -> bool:
    if path.is_symlink() or path.stat().st_size != facts.num_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == facts.sha256
