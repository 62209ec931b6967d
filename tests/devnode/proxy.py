"""Bad weather: a proxy between clients and a node that drops, delays, truncates, refuses, cuts in mid-submission."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from http import HTTPStatus
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

ONCE = ("drop", "delay", "swallow", "truncate", "cut-before", "cut-after", "cut-watch")  # of one request
LASTING = ("refuse", "502", "429", "403", "silence")  # for some time
CLOSED = {"1008": "too many requests", "1001": "going away"}
FAULTS = (*ONCE, *CLOSED, *LASTING)
SUBMISSION = "author_submit"


class Proxy:
    """`endpoint` leads to the node at `upstream`. Faults are made with `fault`, or by chance with `storm`.

    - drop: the next request never arrives and its connection breaks; swallow: its answer never arrives
    - delay: the next answer comes late; truncate: only half of it comes, and the connection breaks
    - cut-before, cut-after, cut-watch: the connection of the next submission breaks before it reaches the node; when
      the node has it and before the client knows; when it is in a block and before the client knows
    - 1008, 1001: connections are closed for a violation of policy; in good order, as by a node that restarts
    - refuse, 502, 429, 403: nobody listens, or handshakes are answered so; open connections break
    - silence: nothing passes
    """

    def __init__(self, upstream: str, *, seed: int = 0, host: str = "127.0.0.1", port: int = 0) -> None:
        self.upstream, self.host, self.port = upstream, host, port
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._armed: list[str] = []
        self._pairs: set[Pair] = set()
        self._status: int | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: Server | None = None
        self._ends: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"ws://{self.host}:{self.port}"

    async def __aenter__(self) -> Proxy:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for end in self._ends:
            end.cancel()
        await self._deafen()

    async def _listen(self) -> None:
        self._server = await serve(
            self._relay, self.host, self.port, max_size=None, compression=None, process_request=self._handshake
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _deafen(self) -> None:
        server, self._server = self._server, None
        self.cut()
        if server is not None:
            server.close(close_connections=True)
            await server.wait_closed()

    def cut(self) -> None:
        """Break every open connection, without a goodbye."""
        for pair in tuple(self._pairs):
            pair.abort()

    async def fault(self, kind: str, seconds: float = 1.0) -> None:
        """Now, or at the next request it can happen to; `seconds` is how long one of LASTING lasts, or the delay."""
        if kind in ONCE:
            self._armed.append(kind if kind != "delay" else f"delay {seconds}")
            return
        self.counts[kind] += 1
        if kind in CLOSED:
            for pair in tuple(self._pairs):
                await pair.client.close(int(kind), CLOSED[kind])
            return
        if kind == "refuse":
            await self._deafen()
        elif kind == "silence":
            self._passing.clear()
        else:
            self._status = int(kind)
            self.cut()
        end = asyncio.create_task(self._end(kind, seconds))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def _end(self, kind: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if kind == "refuse" and self._server is None:
            await self._listen()
        elif kind == "silence":
            self._passing.set()
        else:
            self._status = None

    async def storm(self, every_s: float, longest_s: float) -> None:
        """Faults by chance until cancelled: one every `every_s` seconds on average, of up to `longest_s` seconds."""
        while True:
            await asyncio.sleep(self._random.expovariate(1 / every_s))
            if not self._ends:
                await self.fault(self._random.choice(FAULTS), self._random.uniform(0.1, 1) * longest_s)

    # --- the relay -------------------------------------------------------------------------------

    def _handshake(self, connection: ServerConnection, _: Request) -> Response | None:
        if self._status is None:
            return None
        return connection.respond(HTTPStatus(self._status), "bad weather")

    async def _relay(self, client: ServerConnection) -> None:
        try:
            async with connect(self.upstream, max_size=None, compression=None) as node:
                pair = Pair(client, node)
                self._pairs.add(pair)
                try:
                    ways = (self._up(pair), self._down(pair))
                    _, rest = await asyncio.wait(map(asyncio.create_task, ways), return_when=asyncio.FIRST_COMPLETED)
                    for way in rest:
                        way.cancel()
                    await asyncio.gather(*rest, return_exceptions=True)
                finally:
                    self._pairs.discard(pair)
        except OSError:
            client.transport.abort()  # the node itself is gone

    def _take(self, *kinds: str) -> str | None:
        """The first fault that waits for this, and no longer waits."""
        found = next((kind for kind in self._armed if kind.split()[0] in kinds), None)
        if found is not None:
            self._armed.remove(found)
            self.counts[found.split()[0]] += 1
        return found

    async def _up(self, pair: Pair) -> None:
        try:
            async for message in pair.client:
                await self._passing.wait()
                if self._take("drop") or (SUBMISSION in str(message) and self._take("cut-before")):
                    pair.abort()
                    return
                if SUBMISSION in str(message):
                    fate = self._take("cut-after", "cut-watch")
                    pair.doomed = (fate, json.loads(message)["id"]) if fate else None
                await pair.node.send(message)
        except ConnectionClosed:
            pass

    async def _down(self, pair: Pair) -> None:
        try:
            async for message in pair.node:
                await self._passing.wait()
                if pair.is_doomed(json.loads(message)):
                    pair.abort()
                    return
                fate = (self._take("swallow", "truncate", "delay") or "").split()
                if fate == ["swallow"]:
                    continue
                if fate == ["truncate"]:
                    await pair.client.send(message[: len(message) // 2])
                    pair.abort()
                    return
                if fate:
                    await asyncio.sleep(float(fate[1]))
                await pair.client.send(message)
        except ConnectionClosed:
            pass


class Pair:
    """A client's connection and its own to the node."""

    def __init__(self, client: ServerConnection, node: ClientConnection) -> None:
        self.client, self.node = client, node
        self.doomed: tuple[str, Any] | None = None  # which cut, and the request's id or the watch's name

    def is_doomed(self, message: Any) -> bool:
        """Is this what the client must not get to know?"""
        if self.doomed is None or not isinstance(message, dict):
            return False
        kind, what = self.doomed
        if kind == "cut-after":
            return message.get("id") == what
        if message.get("id") == what and "result" in message:
            self.doomed = (kind, message["result"])
            return False
        params = message.get("params", {})
        return params.get("subscription") == what and "inBlock" in str(params.get("result"))

    def abort(self) -> None:
        self.client.transport.abort()
        self.node.transport.abort()
