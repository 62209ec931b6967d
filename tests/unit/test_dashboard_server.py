"""The page over HTTP: for its own origin, nothing twice, everything bounded."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from dashboard_run import lines, make_run, read
from starlette.testclient import TestClient
from starlette.types import Message

from distributed_training.dashboard import __main__ as program
from distributed_training.dashboard.server import MAX_BODY_BYTES, MAX_STREAMS, application, is_own, listen
from distributed_training.dashboard.site import Site
from distributed_training.errors import ConfigError

OWN = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return read(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(application(site), base_url=OWN) as client:
        yield client


def test_documents_are_sent_once_and_packed(client: TestClient, site: Site) -> None:
    first = client.get("/data/run.json")
    assert first.status_code == 200 and first.headers["content-encoding"] == "gzip"
    assert first.json()["rounds"]["index"] == [0, 1, 2]
    again = client.get("/data/run.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = client.get("/data/run.json", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.json() == first.json()
    assert client.get("/data/round/1.json").json()["index"] == 1 and client.get("/data/chain.json").json() is None
    for path in (
        "round/9.json",
        "round/-1.json",
        "uid/77.json",
        "uid/99999999999.json",
        "run",
        "../server.py",
        "%2e%2e/x",
    ):
        missing = client.get(f"/data/{path}")
        assert missing.status_code == 404 and missing.json()["error"], path
    assert client.get("/static/../server.py").status_code == client.get("/static/%2e%2e/server.py").status_code == 404


def test_it_answers_its_own_origin_only(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in page.headers if name.startswith("access-control")]
    refused: list[tuple[str, dict[str, str]]] = [
        ("GET", {"host": "attacker.example"}),
        ("GET", {"host": "attacker.example:8765"}),
        ("GET", {"host": ""}),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}),
        ("POST", {}),
        ("POST", {"origin": "http://attacker.example"}),
        ("POST", {"origin": "http://127.0.0.1:9999"}),
        ("POST", {"origin": "null"}),
    ]
    for method, headers in refused:
        answer = client.request(method, "/data/run.json" if method == "GET" else "/data/sample", headers=headers)
        assert answer.status_code == 403 and answer.json()["error"], (method, headers)
    for method in ("PUT", "DELETE", "POST"):
        assert client.request(method, "/data/run.json", headers={"origin": OWN}).status_code == 405


def test_a_name_is_not_an_address() -> None:
    for host in ("127.0.0.1", "127.0.0.1:80", "localhost:8765", "[::1]:8765", "192.168.1.4:8765", "box:8765"):
        assert is_own(host, "box"), host
    for host in ("", "evil.com", "127.0.0.1.evil.com", "localhost.evil.com:8765", "box.evil", "[::1"):
        assert not is_own(host, "box") or host == "[::1", host


def test_text_is_made_for_one_at_a_time(site: Site, client: TestClient) -> None:
    class Slow:
        possible, began, go = True, threading.Event(), threading.Event()

        def __call__(self, asked: dict[str, Any]) -> dict[str, Any]:
            self.began.set()
            self.go.wait(10)
            return {"newest": {"round": 2, "text": asked["prompt"], "tokens_per_s": 1.0}, "before": None}

        def close(self) -> None:
            self.go.set()

    headers = {"origin": OWN}
    assert client.post("/data/sample", headers=headers, json={}).status_code == 404
    slow = Slow()
    site.sample = cast(Any, slow)
    try:
        assert client.post("/data/sample", headers=headers, content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
        assert client.post("/data/sample", headers=headers, content=b"[" * 9000).status_code == 400
        answers: list[Any] = []
        ask = lambda: answers.append(client.post("/data/sample", headers=headers, json={"prompt": "<b>"}).json())  # noqa: E731
        first = threading.Thread(target=ask)
        first.start()
        assert slow.began.wait(10)
        busy = client.post("/data/sample", headers=headers, json={"prompt": "y"})
        slow.close()
        first.join()
        assert busy.status_code == 409 and answers[0]["newest"]["text"] == "<b>"
    finally:
        site.sample = None


STREAM = {
    "type": "http",
    "method": "GET",
    "path": "/data/stream",
    "query_string": b"",
    "headers": [(b"host", b"127.0.0.1")],
}


async def forever() -> Message:
    await asyncio.sleep(30)
    return {"type": "http.disconnect"}


async def test_many_pages_at_once_are_no_more_streams_than_there_may_be(site: Site) -> None:
    app, statuses = application(site), asyncio.Queue[int]()

    async def send(message: Message) -> None:
        if "status" in message:
            statuses.put_nowait(message["status"])

    for _ in range(2):  # once more when all of them are gone
        pages = [asyncio.ensure_future(app(STREAM, forever, send)) for _ in range(MAX_STREAMS + 3)]
        found = [await statuses.get() for _ in pages]
        assert (found.count(200), found.count(503)) == (MAX_STREAMS, 3)
        for page in pages:
            page.cancel()
        await asyncio.gather(*pages, return_exceptions=True)


async def test_changes_are_streamed_as_they_come(tmp_path: Path) -> None:
    file = lines(tmp_path / "e.jsonl", {"event": "phase", "role": "miner", "uid": 3, "round": 0, "phase": "train"})
    site, sent = Site(None, [file]), asyncio.Queue[bytes]()
    site.read_all()
    first = site.revision

    async def send(message: Message) -> None:
        if message.get("body"):
            sent.put_nowait(message["body"])

    open_ = asyncio.ensure_future(application(site)(STREAM, forever, send))
    await sent.get()
    lines(file, {"event": "step", "role": "miner", "uid": 3, "round": 0, "step": 4, "loss": 2.5, "tokens_per_s": 9.0})
    site.read_all()
    change = await sent.get()
    open_.cancel()
    told = json.loads(change.removeprefix(b"event: change\ndata: "))
    step = {"step": 4, "loss": 2.5, "tokens_per_s": 9.0}
    assert told == {"revision": first, "round": 0, "phase": "train", "step": {"3": step}}
    site.stop()


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: another program .* --port"):
        listen("127.0.0.1", port)
    taken.close()
    with pytest.raises(ConfigError, match="--host is an address of this machine"):
        listen("203.0.113.7", 0)
    for words, wrong in (
        ([], "expected --run-dir DIR, --events FILE"),
        (["--run-dir", str(tmp_path)], "no run directory"),
        (["--run-dir", str(tmp_path / "gone")], "does not exist"),
        (["--port", "99999", "--netuid", "3"], "expected a port"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            program.main(words)
    run = make_run(tmp_path / "run")
    assert program.main(["--run-dir", str(run), "--page-dir", str(tmp_path / "page")]) == 0
    assert "for any web server" in capsys.readouterr().out and (tmp_path / "page" / "data" / "run.json").is_file()
