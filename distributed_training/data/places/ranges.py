"""Byte ranges of files over HTTP: one request each, addresses that redirect remembered until they expire.

Requests go through the session that huggingface_hub itself uses, so its proxies and certificates are ours.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from huggingface_hub.utils import get_session, httpx, parse_ratelimit_headers

from distributed_training.data.pages import Dataset, FileEntry
from distributed_training.data.places.addresses import Way, origin
from distributed_training.errors import DataUnavailable

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_DRAINED = 1 << 16  # the body of an error or a redirect is read up to here, so that its connection can be used again
_MAX_HOPS = 4
_WINDOW_S = 300.0  # the Hub counts requests in windows of this length


class Denied(DataUnavailable):
    """Not there, or not for us: asking again does not help."""


class _AgainError(Exception):
    """This attempt failed, another may not. `wait_s` None: as long as usual."""

    def __init__(self, said: str, wait_s: float | None = None) -> None:
        super().__init__(said)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a place may be asked, and how long one read may take."""

    tries: int = 6
    total_s: float = 150.0  # one read with all its attempts and waits
    attempt_s: float = 60.0
    pause_s: float = 0.5  # after the first failure; doubled after each, with jitter, up to 16 times
    in_flight: int = 8
    requests_a_window: int | None = None  # to the place itself, in any 5 minutes; None: as many as are needed


class HttpPlace:
    """A Place. `url_of` a file's address; `headers` go to that address's host only; `explain(status, code, file)` says
    what a refusal means. See `http_base`, and `hub.hub_dataset`."""

    def __init__(
        self,
        name: str,
        url_of: Callable[[str], str],
        *,
        headers: Callable[[], Mapping[str, str]] = dict,
        explain: Callable[[int, str, str], str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name, self._url_of, self._headers = name, url_of, headers
        self._explain = explain or (lambda status, _, file: f"{name} has no {file} for us: HTTP status {status}")
        self._limits = limits or Limits()
        self._slots = threading.BoundedSemaphore(self._limits.in_flight)
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._ways: dict[str, Way] = {}
        self._asked: deque[float] = deque()
        self._quiet_until = -math.inf
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """So far: `requests`, those of them to the place itself (`asked`; the others went to signed addresses),
        `bytes` of bodies, and `retries`."""
        with self._lock:
            return dict(self._counts)

    def read(self, file_name: str, offset: int, length: int, total_s: float = math.inf) -> bytes:
        """See Place; `total_s` is for less patience than usual. Raises Denied where trying again is of no use."""
        until = time.monotonic() + min(total_s, self._limits.total_s)
        said = "no time"
        for attempt in range(self._limits.tries):
            try:
                self._wait_for_quiet(until)
                with self._slots:
                    return self._attempt(
                        file_name, offset, length, min(until, time.monotonic() + self._limits.attempt_s)
                    )
            except _AgainError as trouble:
                said = str(trouble)
                pause = self._limits.pause_s * 2 ** min(attempt, 4) * random.uniform(0.5, 1.0)
                wait_s = pause if trouble.wait_s is None else trouble.wait_s
                if attempt + 1 == self._limits.tries or time.monotonic() + wait_s >= until:
                    break
                self._count(retries=1)
                time.sleep(wait_s)
        raise DataUnavailable(f"{file_name}: {said}")

    def forget(self, file_name: str) -> None:
        """See Place: the next read asks the place itself again."""
        with self._lock:
            self._ways.pop(file_name, None)

    def vouches(self, file: FileEntry, dataset: Dataset | None) -> bool:
        """Whoever has the address can put there what they like."""
        return False

    def _attempt(self, file_name: str, offset: int, length: int, until: float) -> bytes:
        way = self._way(file_name)
        if way is None:
            asking = self._asking.setdefault(file_name, threading.Lock())  # one asks, the others use what it learns
            if not asking.acquire(timeout=max(0.0, until - time.monotonic())):
                raise _AgainError("its address was not learned in time")
            try:
                way = self._way(file_name)
                if way is None:
                    return self._follow(Way(self._url_of(file_name)), file_name, offset, length, until)
            finally:
                asking.release()
        return self._follow(way, file_name, offset, length, until)

    def _follow(self, way: Way, file_name: str, offset: int, length: int, until: float) -> bytes:
        """The bytes. Where they came from is remembered; an address that did not lead to them is forgotten."""
        last = way
        try:
            for _ in range(_MAX_HOPS + 1):
                answer = self._get(last.url, file_name, offset, length, until)
                if isinstance(answer, bytes):
                    if last is not way or way.url == self._url_of(file_name):
                        self._ways[file_name] = last
                    return answer
                last = Way(answer)
            raise Denied(f"{file_name}: more than {_MAX_HOPS} redirects")
        except Exception:
            with self._lock:
                if self._ways.get(file_name) is way:  # else somebody has learned another one meanwhile
                    del self._ways[file_name]
            raise

    def _way(self, file_name: str) -> Way | None:
        way = self._ways.get(file_name)
        return None if way is None or way.expired() else way

    def _get(self, url: str, file_name: str, offset: int, length: int, until: float) -> bytes | str:
        """The bytes, or the address it redirects to."""
        own = self._url_of(file_name)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if origin(url) == origin(own):
            headers |= self._headers()
            self._spend(until)
        self._count(requests=1, asked=int(origin(url) == origin(own)))
        session = get_session()
        left_s = max(1.0, until - time.monotonic())
        timeout = httpx.Timeout(min(20.0, left_s), pool=left_s)
        try:
            with session.stream("GET", url, headers=headers, follow_redirects=False, timeout=timeout) as response:
                if response.status_code == 206:
                    return self._body(response, offset, length, until)
                _drain(response, until)
                if response.status_code in _REDIRECTS:
                    return _target(url, response.headers.get("Location", ""))
                raise self._trouble(response, url == own, file_name)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _AgainError(f"{type(error).__name__} {error}".strip()) from error
        except httpx.InvalidURL as error:
            raise Denied(f"{file_name}: redirected to no address: {error}") from error
        except OSError as error:  # huggingface_hub's offline mode
            raise Denied(f"{file_name}: {error}") from error
        except RuntimeError as error:
            if not session.is_closed:
                raise
            raise _AgainError("the session was closed by another part of this process") from error

    def _body(self, response: httpx.Response, offset: int, length: int, until: float) -> bytes:
        expected = f"bytes {offset}-{offset + length - 1}/"
        if not response.headers.get("Content-Range", "").startswith(expected):
            raise _AgainError(f"sent {response.headers.get('Content-Range')!r}, expected {expected}")
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            self._count(bytes=len(piece))
            if len(body) > length:
                raise _AgainError(f"sent more than the {length} bytes that were asked for")
            if time.monotonic() > until:
                raise _AgainError(f"sent {len(body)} of {length} bytes in time")
        if len(body) != length:
            raise _AgainError(f"sent {len(body)} bytes, expected {length}")
        return bytes(body)

    def _trouble(self, response: httpx.Response, own: bool, file_name: str) -> Exception:
        """What an answer without the bytes means."""
        status = response.status_code
        if status in _BUSY:
            wait_s = _asked_to_wait(response.headers)
            if wait_s is not None:
                wait_s = min(wait_s + random.uniform(0.0, 0.1 + 0.1 * wait_s), _WINDOW_S)
                with self._lock:  # whoever else reads here waits too
                    self._quiet_until = max(self._quiet_until, time.monotonic() + wait_s)
            return _AgainError(f"HTTP status {status}", wait_s)
        if status in (200, 416):
            said = "the whole file" if status == 200 else "that it is shorter"
            return Denied(f"{file_name}: asked for a byte range, was sent {said} (HTTP status {status})")
        if not own:  # a signed address has expired, or what it names has moved
            known = self._ways.get(file_name)
            stale = known is not None and known.age_s() > 1.0
            return _AgainError(f"HTTP status {status} from a signed address", 0.0 if stale else None)
        return Denied(self._explain(status, response.headers.get("X-Error-Code", ""), file_name))

    def _wait_for_quiet(self, until: float) -> None:
        while (wait_s := self._quiet_until - time.monotonic()) > 0:
            if time.monotonic() + wait_s >= until:
                raise _AgainError(f"asked us to wait {wait_s:.0f} s", math.inf)
            time.sleep(wait_s)

    def _spend(self, until: float) -> None:
        """One more request to the place itself, as soon as the window has room."""
        most = self._limits.requests_a_window
        while most is not None:
            with self._lock:
                now = time.monotonic()
                while self._asked and self._asked[0] <= now - _WINDOW_S:
                    self._asked.popleft()
                if len(self._asked) < most:
                    self._asked.append(now)
                    return
                room_at = self._asked[0] + _WINDOW_S
            if room_at >= until:
                raise _AgainError(f"the {most} requests of 5 minutes are made", math.inf)
            time.sleep(max(0.0, room_at - time.monotonic()))

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts.update(more)


def http_base(url: str, limits: Limits | None = None) -> HttpPlace:
    """Files below a URL: any server that knows byte ranges, for example a mirror of the data set's folder."""
    base = url.rstrip("/") + "/"
    return HttpPlace(url, lambda file_name: base + quote(file_name), limits=limits)


def _target(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        schemes = urlsplit(url).scheme, urlsplit(target).scheme
    except ValueError:
        target, schemes = location, ("", "")
    if not location or schemes[1] not in ("http", "https") or schemes == ("https", "http"):
        raise Denied(f"a redirect to {target[:80]!r} is not followed")
    return target


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    seconds = headers.get("Retry-After", "").strip()
    return float(seconds) if seconds.isdigit() and len(seconds) < 9 else None


def _drain(response: httpx.Response, until: float) -> None:
    """Read a short body; one that is not short, or not there in time, costs the connection."""
    if int(response.headers.get("Content-Length") or _DRAINED) < _DRAINED and response.status_code != 200:
        for _ in response.iter_raw():
            if time.monotonic() > until:
                return
