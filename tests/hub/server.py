"""The hub: its state, its settings, its faults and counts, and the listening socket that starts and stops."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from hub.connection import Listener
from hub.context import Context, Settings
from hub.faults import Faults
from hub.store import Kind, Store
from hub.traffic import Seen, Traffic
from hub.wire import HubError, Reply, Request, error_reply, json_reply


class TestHub(AbstractContextManager["TestHub"]):
    """A Hub on this machine for the real clients. As a context manager it starts and stops.

    What is under `root_dir` is kept, so a hub on the same folder goes on where the last one ended.
    """

    __test__ = False  # a name, not a test

    def __init__(
        self, root_dir: Path | str, *, host: str = "127.0.0.1", port: int = 0, settings: Settings | None = None
    ) -> None:
        self.host, self.port = host, port
        self.context = Context(Store(Path(root_dir)), settings or Settings())
        self.faults = Faults()
        self.traffic = Traffic()
        self.connections: set[socket.socket] = set()
        self._listener: Listener | None = None
        self._stopping = threading.Event()

    @property
    def store(self) -> Store:
        return self.context.store

    @property
    def requests(self) -> list[Seen]:
        return self.traffic.requests

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def put(
        self,
        kind: Kind,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        message: str = "put",
        private: bool = False,
        tag: str | None = None,
    ) -> str:
        """See Store.put."""
        return self.store.put(kind, repo_id, files, message=message, private=private, tag=tag)

    def start(self) -> None:
        """Listens from now on; after a stop at the same port as before."""
        self._stopping.clear()
        self._listener = Listener((self.host, self.port), self)
        self.port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="hub", daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on and open ones end. May be called twice."""
        if self._listener is None:
            return
        self._stopping.set()
        self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._listener = None

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond a stop."""
        self._stopping.wait(seconds)

    def __enter__(self) -> TestHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def admin(self, request: Request) -> Reply:
        """How another process looks at the traffic and sets faults."""
        name = f"{request.method} {request.path}"
        if name == "GET /admin/stats":
            return json_reply(self.traffic.stats())
        if name == "POST /admin/faults":
            try:
                self.faults.add_json(json.loads(request.content))
            except (TypeError, ValueError) as error:
                return error_reply(HubError(400, str(error)))
        elif name == "DELETE /admin/faults":
            self.faults.clear()
        elif name != "GET /admin/faults":
            return error_reply(HubError(404, f"no route for {name}"))
        return json_reply(self.faults.to_json())
