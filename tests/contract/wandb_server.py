"""As much of a Weights & Biases server as a node's run needs: it keeps runs, rows, and all bytes that it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

ENTITY = "team"
NO_LINES = {"logLineCount": 0, "eventsLineCount": 0, "historyTail": "[]", "eventsTail": "[]"}
FRESH = {"config": "{}", "summaryMetrics": "{}", "tags": [], "wandbConfig": '{"t": 1}', **NO_LINES}
LAST_PAGE = {"endCursor": "c", "hasNextPage": False}


class WandbServer(ThreadingHTTPServer):
    """`status` other than 200 is its answer to everything; `hangs` answers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.files = dict[str, dict[str, Any]](), dict[str, bytes]()
        self.rows = dict[str, dict[int, dict[str, Any]]]()
        self.sent, self.status = bytearray(), 200
        self.hangs, self.released = False, Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, name: str | None, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "RunResumeStatus":
            run = self.runs.get(variables["name"])
            return {
                "model": {"id": "m", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": run}
            }
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/upload/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        runs = {"edges": [{"cursor": "c", "node": run} for run in self.runs.values()], "pageInfo": LAST_PAGE}
        viewer = {"id": "v", "entity": ENTITY, "username": "somebody", "teams": {"edges": []}}
        return {"viewer": viewer, "project": {"internalId": "1", "runCount": len(self.runs), "runs": runs}}

    def _upsert(self, v: dict[str, Any]) -> dict[str, Any]:
        kept = self.runs.setdefault(v["name"], {**FRESH})
        rows = self.rows.setdefault(v["name"], {})
        project = {"id": "p", "name": v["project"], "entity": {"id": "e", "name": ENTITY}}
        given = {
            key: v[key] for key in ("config", "displayName", "groupName", "jobType", "tags") if v.get(key) is not None
        }
        kept |= given | {"id": v["name"], "name": v["name"], "project": project, "historyLineCount": len(rows)}
        return kept

    def streamed(self, run: str, files: dict[str, Any]) -> None:
        chunk = files.get("wandb-history.jsonl", {})
        for number, line in enumerate(chunk.get("content", []), chunk.get("offset", 0)):
            self.rows[run][number] = json.loads(line)
            self.runs[run] |= {"historyLineCount": len(self.rows[run]), "historyTail": json.dumps([line])}
        for summary in files.get("wandb-summary.json", {}).get("content", []):
            self.runs[run]["summaryMetrics"] = summary


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        if self.server.hangs:
            self.server.released.wait(60)
        if self.server.status != 200:
            self._answer({"errors": [{"message": "not you"}]}, self.server.status)
        elif self.path == "/graphql":
            asked = json.loads(body)
            self._answer({"data": self.server.asked(asked.get("operationName"), asked.get("variables") or {})})
        else:
            self.server.streamed(self.path.split("/")[-2], json.loads(body).get("files", {}))
            self._answer({})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.sent += self.path.encode() + str(self.headers).encode() + body
        return body

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()
