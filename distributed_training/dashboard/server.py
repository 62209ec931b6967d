"""The page over HTTP: documents, files and changes, for its own origin only."""

from __future__ import annotations

import asyncio
import errno
import gzip
import ipaddress
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from distributed_training.dashboard.site import INDEX, STATIC, Site
from distributed_training.errors import ConfigError

CHANGE_S = 0.5  # between two changes that are told, at least
STILL_S = 15.0  # without a change: a word all the same, so that nobody takes the line for dead
MAX_STREAMS, MAX_CONNECTIONS = 64, 256
MAX_BODY_BYTES = 16 << 10
END_S = 1  # that open requests get when the server stops
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class OwnOrigin(BaseHTTPMiddleware):
    """Refuses what another page asks for: a name that was made to point here, a POST from elsewhere."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        super().__init__(app)
        self._host = host

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        refusal = self._refusal(request)
        answer = await call_next(request) if refusal is None else _error(refusal, 403)
        answer.headers.update(HEADERS)
        return answer

    def _refusal(self, request: Request) -> str | None:
        host = request.headers.get("host", "")
        if not is_own(host, self._host):
            return "this page answers to its address only, not to another name"
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin != f"http://{host}":
            return "only this page itself may ask for that"
        site = request.headers.get("sec-fetch-site", "none")
        if request.headers.get("sec-fetch-mode") != "navigate" and site not in ("none", "same-origin"):
            return "this page answers its own origin only"
        return None


def is_own(host: str, served: str) -> bool:
    """A Host header names an address, this machine or what --host says. Nobody can make an address point elsewhere,
    but everybody a name of their own."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", served.lower())
    return True


class Page:
    """Answers of one site."""

    def __init__(self, site: Site) -> None:
        self._site, self._streams, self._busy = site, 0, threading.Lock()

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/", self.index),
            Route("/index.html", self.index),
            Route("/data/stream", self.stream),
            Route("/data/sample", self.sample, methods=["POST"]),
            Route("/data/{path:path}", self.data),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    async def index(self, request: Request) -> Response:
        return HTMLResponse(INDEX.read_bytes(), headers={"cache-control": "no-cache"})

    async def data(self, request: Request) -> Response:
        """Documents as they are now; one that the browser has is not sent again."""
        made = await run_in_threadpool(self._site.document, request.path_params["path"])
        if made is None:
            return _error("nothing is known of that here", 404)
        tag = f'"{made[0]}"'
        headers = {"etag": tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(made[1], media_type="application/json", headers=headers | {"content-encoding": "gzip"})
        return Response(gzip.decompress(made[1]), media_type="application/json", headers=headers)

    async def stream(self, request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            return _error(f"{MAX_STREAMS} pages are open already", 503)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        changes = StreamingResponse(self._changes(), media_type="text/event-stream", headers=headers)
        return _Counted(changes, self._count)

    def _count(self, number: int) -> None:
        self._streams += number

    async def _changes(self) -> AsyncIterator[bytes]:
        told, still = "", 0.0
        while not self._site.stopped:
            change = json.dumps(self._site.change(), separators=(",", ":"))
            if change != told:
                told, still = change, 0.0
                yield f"event: change\ndata: {change}\n\n".encode()
            elif still >= STILL_S:
                still = 0.0
                yield b": still here\n\n"
            await asyncio.sleep(CHANGE_S)
            still += CHANGE_S

    async def sample(self, request: Request) -> Response:
        """Text from the newest checkpoint, for one at a time."""
        sample = self._site.sample
        if sample is None:
            return _error("this page makes no text", 404)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return _error(f"the request is longer than {MAX_BODY_BYTES} bytes", 413)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return _error("expected a JSON object", 400)
        if not self._busy.acquire(blocking=False):
            return _error("text is being made for somebody already; try again in a moment", 409)
        try:
            return JSONResponse(await run_in_threadpool(sample, asked))
        except ConfigError as error:
            return _error(str(error), 400)
        finally:
            self._busy.release()


class _Counted(Response):
    """An answer that is counted from the moment it is given until it is over, however it ends."""

    def __init__(self, answer: Response, count: Callable[[int], None]) -> None:
        super().__init__()
        self._answer, self._count = answer, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._count(1)
        try:
            await self._answer(scope, receive, send)
        finally:
            self._count(-1)


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers={"cache-control": "no-store"})


async def _missing(request: Request, error: Exception) -> Response:
    return _error("there is no such page", 404)


def application(site: Site, host: str = "127.0.0.1") -> ASGIApp:
    return OwnOrigin(Starlette(routes=Page(site).routes(), exception_handlers={404: _missing}), host)


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError in one line."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "another program listens there; give this page another --port, or 0 for any that is free"
        else:
            why = f"{str(error.strerror).partition(' (')[0]}; --host is an address of this machine"
        raise ConfigError(f"cannot listen on {host} port {port}: {why}") from None


class Server(uvicorn.Server):
    """Open streams end with the site, so that nobody waits for them."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._site.stop()
        super().handle_exit(sig, frame)


def serve(site: Site, listener: socket.socket, host: str) -> None:
    """Until a stop signal."""
    config = uvicorn.Config(
        application(site, host),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=END_S,
        ws="none",
    )
    asyncio.run(Server(config, site).serve(sockets=[listener]))
