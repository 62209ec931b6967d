"""Requests and replies as the routes see them, and the table that leads from one to the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote

if TYPE_CHECKING:
    from hub.context import Context


class HubError(Exception):
    """Becomes an answer. `code` is the X-Error-Code by which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Body:
    """The body of a request, with a length or in chunks. Reading past its end gives b""."""

    def __init__(self, stream: BinaryIO, headers: Mapping[str, str]) -> None:
        self._stream = stream
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)
        self.done = not self._chunked and self._left == 0

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, all if negative. Raises ConnectionError if the sender stops before the end."""
        parts: list[bytes] = []
        while not self.done and size != 0:
            if self._left == 0:
                self._next_chunk()
                continue
            data = self._stream.read(self._left if size < 0 else min(size, self._left))
            if not data:
                self.done = True
                raise ConnectionError("the sender stopped in the middle of a body")
            parts.append(data)
            self._consume(len(data))
            size -= len(data) if size > 0 else 0
        return b"".join(parts)

    def _consume(self, count: int) -> None:
        self._left -= count
        if self._left == 0:
            if self._chunked:
                self._stream.readline()
            else:
                self.done = True

    def _next_chunk(self) -> None:
        line = self._stream.readline()
        if not line:
            self.done = True
            raise ConnectionError("the sender stopped in the middle of a body")
        self._left = int(line.split(b";")[0], 16)
        if self._left == 0:
            self._stream.readline()
            self.done = True


@dataclass
class Request:
    """`path` is as it was sent: %2F in a revision is not a separator. `groups` are the route's, decoded."""

    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    body: Body
    base_url: str
    content: bytes = b""
    groups: dict[str, str] = field(default_factory=dict)
    raced: bool = False  # somebody else commits first

    def query(self, name: str, default: str = "") -> str:
        return parse_qs(self.query_string).get(name, [default])[-1]

    def flag(self, name: str) -> bool:
        return self.query(name).lower() in ("true", "1")

    def json(self) -> dict[str, Any]:
        """An absent body is {}. Raises HubError 400 if it is not a JSON object."""
        try:
            value = json.loads(self.content or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise HubError(400, "a JSON object is expected")
        return value


@dataclass
class Reply:
    """With `file` the server answers Range requests and sends from disk; else it sends `body`."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def error_reply(error: HubError) -> Reply:
    return json_reply({"error": str(error)}, error.status, error.headers)


def paged(request: Request, items: Sequence[object], page_size: int) -> Reply:
    """One page of the items. A Link header leads to the next, as the client follows it."""
    start = int(request.query("cursor", "0"))
    headers: dict[str, str] = {}
    if start + page_size < len(items):
        kept = {k: v[-1] for k, v in parse_qs(request.query_string).items() if k != "cursor"}
        query = "&".join(f"{quote(k)}={quote(v)}" for k, v in {**kept, "cursor": str(start + page_size)}.items())
        headers["Link"] = f'<{request.base_url}{request.path}?{query}>; rel="next"'
    return json_reply(items[start : start + page_size], headers=headers)


def byte_span(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a single range. None: send all. Raises HubError 416."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise HubError(416, "range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


Handler = Callable[["Context", Request], Reply]


@dataclass(frozen=True)
class Route:
    """A streaming route reads the body itself and runs without the store's lock."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    streaming: bool = False


def route(method: str, pattern: str, handler: Handler, *, streaming: bool = False) -> Route:
    return Route(method, re.compile(pattern), handler, streaming)


def find_route(routes: Sequence[Route], request: Request) -> Route:
    """Also fills the request's groups. HEAD is served as GET. Raises HubError 404."""
    method = "GET" if request.method == "HEAD" else request.method
    for candidate in routes:
        match = candidate.pattern.fullmatch(request.path) if candidate.method == method else None
        if match is not None:
            request.groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            return candidate
    raise HubError(404, f"no route for {request.method} {request.path}")
