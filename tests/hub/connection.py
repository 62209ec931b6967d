"""One connection: reads its requests, applies the faults, sends the replies, counts them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import BinaryIO, Protocol, cast
from urllib.parse import unquote

from hub import reading, uploading, writing
from hub.context import Context
from hub.faults import Fault, Faults
from hub.traffic import Seen, Traffic
from hub.wire import Body, HubError, Reply, Request, byte_span, error_reply, find_route

ROUTES = [*reading.ROUTES, *writing.ROUTES, *uploading.ROUTES]


class _CutError(Exception):
    """The connection ends here, on purpose."""


class Serving(Protocol):
    """What a connection needs of the hub it belongs to."""

    context: Context
    faults: Faults
    traffic: Traffic
    connections: set[socket.socket]

    def pause(self, seconds: float) -> None: ...
    def admin(self, request: Request) -> Reply: ...


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], hub: Serving) -> None:
        self.hub = hub
        super().__init__(address, Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.hub: Serving = cast(Listener, self.server).hub
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Traffic is counted instead."""

    def _serve(self) -> None:
        request = self._read_head()
        if request.path.startswith("/admin/"):
            request.content = request.body.read()
            self._send_head(reply := self.hub.admin(request), len(reply.body))
            self.wfile.write(reply.body)
            return
        path, byte_range = unquote(request.path), self.headers.get("Range", "")
        fault = self.hub.faults.pick(self.command, path, byte_range)
        self._status = self._sent = 0
        self.hub.traffic.begin()
        try:
            self._answer(request, fault)
            self.wfile.flush()
        except (_CutError, OSError):
            self.close_connection = True
            if fault is not None and fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        finally:
            self._count(path, byte_range, fault)
        if not request.body.done:
            self.close_connection = True  # what is left of the body would read as the next request

    def _count(self, path: str, byte_range: str, fault: Fault | None) -> None:
        authorized = "Authorization" in self.headers
        kind = fault.kind if fault else ""
        cdn_host = self.hub.context.settings.cdn_host
        leak = authorized and bool(cdn_host) and path.startswith(("/cdn/", "/upload/"))
        seen = Seen(self.command, path, byte_range, self._status, self._sent, authorized, kind)
        self.hub.traffic.record(seen, leak=leak)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_head(self) -> Request:
        path, _, query = self.path.partition("?")
        headers = cast(Mapping[str, str], self.headers)
        return Request(
            self.command,
            path,
            query,
            headers,
            Body(cast(BinaryIO, self.rfile), headers),
            f"http://{self.headers.get('Host')}",
        )

    def _answer(self, request: Request, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "stall" and not fault.after_bytes:
            self.hub.pause(fault.seconds)
        elif fault and kind in ("drop", "reset"):
            if not fault.after_bytes or self.command == "HEAD" or not request.body.done:
                request.body.read(fault.after_bytes)
                raise _CutError
        elif kind == "down":
            raise _CutError
        request.raced = kind == "conflict"
        reply = _faulty_reply(fault, request) or _reply(self.hub.context, request)
        if kind == "lost":
            raise _CutError
        self._send(reply, fault)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        with ExitStack() as stack:
            source: BinaryIO = BytesIO(reply.body)
            start, stop = 0, len(reply.body)
            if reply.file is not None:
                source = stack.enter_context(reply.file.open("rb"))
                size = stop = reply.file.stat().st_size
                try:
                    span = byte_span(self.headers.get("Range", ""), size)
                except HubError as error:
                    self._send(error_reply(error), None)
                    return
                if span is not None:
                    start, stop = span
                    reply.status = 206
                    reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            if fault and fault.kind == "truncate":
                stop = min(stop, start + fault.after_bytes)
            self._send_head(reply, stop - start)
            if self.command != "HEAD":
                self._send_body(source, start, stop, fault)

    def _send_head(self, reply: Reply, length: int) -> None:
        self._status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/octet-stream", **reply.headers}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_body(self, source: BinaryIO, start: int, stop: int, fault: Fault | None) -> None:
        """The bytes from `start` to `stop` of the source, spoiled where the fault says so."""
        kind = fault.kind if fault else ""
        at = min(stop, start + (fault.after_bytes if fault else 0))
        if fault and kind in ("drop", "reset"):
            self._send_span(source, start, at)
            self.wfile.flush()
            raise _CutError
        if fault and kind == "stall" and fault.after_bytes:
            self._send_span(source, start, at)
            self.wfile.flush()
            self.hub.pause(fault.seconds)
            start = at
        if kind == "wrong_bytes" and stop > start:
            at = min(at, stop - 1) if at > start else (start + stop) // 2
            self._send_span(source, start, at)
            source.seek(at)
            self.wfile.write(bytes([source.read(1)[0] ^ 0xFF]))
            self._sent += 1
            start = at + 1
        self._send_span(source, start, stop)

    def _send_span(self, source: BinaryIO, start: int, stop: int) -> None:
        if isinstance(source, BytesIO):
            self.wfile.write(source.getbuffer()[start:stop])
            self._sent += stop - start
        elif stop > start:
            self.wfile.flush()
            self._sent += self.connection.sendfile(source, start, stop - start)


def _reply(context: Context, request: Request) -> Reply:
    """What the routes answer; their errors become answers."""
    try:
        found = find_route(ROUTES, request)
        if found.streaming:
            return found.handler(context, request)
        request.content = request.body.read()
        with context.store.lock:
            return found.handler(context, request)
    except HubError as error:
        return error_reply(error)
    except (KeyError, TypeError, ValueError) as error:
        return error_reply(HubError(400, f"malformed request: {error!r}"))


def _faulty_reply(fault: Fault | None, request: Request) -> Reply | None:
    """The answer in place of the right one, for the faults that give one."""
    if fault is None or fault.kind not in ("rate_limit", "unavailable", "expired"):
        return None
    request.body.read()
    if fault.kind == "unavailable":
        return error_reply(HubError(503, "Service Temporarily Unavailable"))
    if fault.kind == "expired":
        return error_reply(HubError(403, "Request has expired"))
    bucket, seconds = "resolvers" if "/resolve/" in request.path else "api", round(fault.seconds)
    headers = {
        "RateLimit": f'"{bucket}";r=0;t={seconds}',
        "RateLimit-Policy": f'"fixed window";"{bucket}";q=500;w=300',
        "Retry-After": str(seconds),
    }
    return error_reply(HubError(429, "We had to rate limit you", headers=headers))
