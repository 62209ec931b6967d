"""A place over HTTP against servers that do not do what they should."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from distributed_training.data.places.ranges import Denied, Limits, http_base
from distributed_training.errors import DataUnavailable

DATA = bytes(range(256)) * 16
QUICK = Limits(tries=2, total_s=5.0, attempt_s=1.0, pause_s=0.01)
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The base URL, and the headers of every request."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append({"path": self.path, **self.headers})
            answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/files", seen
    finally:
        server.shutdown()
        server.server_close()


def say(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = length is not None

    return answer


def part(**headers: str) -> Answer:
    sent: dict[str, Any] = {"Content_Range": "bytes 10-109/4096", **headers}
    return say(206, DATA[10:110], **sent)


def test_the_right_answer_is_the_bytes() -> None:
    with serving(part()) as (url, seen):
        place = http_base(url, QUICK)
        assert place.read("a b/c%.parquet", 10, 100) == DATA[10:110]
        assert seen[0]["path"] == "/files/a%20b/c%25.parquet"
        assert seen[0]["Range"] == "bytes=10-109"
        assert "Authorization" not in seen[0]
        assert place.counts == {"requests": 1, "asked": 1, "bytes": 100}


@pytest.mark.parametrize(
    ("answer", "said", "requests"),
    [
        (say(200, DATA), "asked for a byte range, was sent the whole file", 1),
        (say(200, b"", 1 << 40), "asked for a byte range, was sent the whole file", 1),
        (say(416), "was sent that it is shorter", 1),
        (say(404), "HTTP status 404", 1),
        (say(500), "HTTP status 500", 2),
        (say(206, DATA[10:110]), "expected bytes 10-109/", 2),
        (part(Content_Range="bytes 11-110/4096"), "expected bytes 10-109/", 2),
        (say(206, DATA, Content_Range="bytes 10-109/4096"), "sent more than the 100 bytes", 2),
        (say(206, DATA[:50], Content_Range="bytes 10-109/4096"), "sent 50 bytes, expected 100", 2),
        (say(206, DATA[:50], 100, Content_Range="bytes 10-109/4096"), "RemoteProtocolError|ReadError", 2),
        (say(206, DATA[:99], -1, Content_Range="bytes 10-109/4096"), "RemoteProtocolError|ReadError|sent 99", 2),
        (say(302, Location="/files/x"), "redirects", 5),
        (say(302, Location="file:///etc/passwd"), "not followed", 1),
        (say(302), "not followed", 1),
        (say(302, Location="http://[::/x"), "not followed", 1),
        (say(429, Retry_After="100"), "HTTP status 429", 1),
        (say(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "HTTP status 503", 2),
    ],
)
def test_wrong_answers_are_unavailable(answer: Answer, said: str, requests: int) -> None:
    with serving(answer) as (url, seen):
        began = time.monotonic()
        with pytest.raises(DataUnavailable, match=said) as caught:
            http_base(url, QUICK).read("x", 10, 100)
        assert "\n" not in str(caught.value)
        assert len(seen) == requests
        assert isinstance(caught.value, Denied) == (requests not in (2,) and "429" not in said)
        assert time.monotonic() - began < 2.0


def test_a_body_that_drips_is_given_up() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 10-109/4096")
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        try:
            for byte in DATA[10:110]:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    with serving(drip) as (url, _):
        began = time.monotonic()
        with pytest.raises(DataUnavailable, match="bytes in time"):
            http_base(url, Limits(tries=1, attempt_s=0.3)).read("x", 10, 100)
        assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "bad",
    [
        say(200, DATA),
        say(416),
        say(404),
        say(500),
        say(206, DATA[10:110]),
        say(206, DATA[:50], 100, Content_Range="bytes 10-109/4096"),
        say(302, Location="bad"),
        lambda handler: setattr(handler, "close_connection", True),
    ],
    ids=["whole", "shorter", "missing", "broken", "no range", "cut", "loop", "gone"],
)
@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_redirect_that_led_nowhere_is_forgotten(bad: Answer, when: str) -> None:
    good = when == "later"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("/x"):
            say(302, Location="/signed/good" if good else "/signed/bad")(handler)
        else:
            (part() if good else bad)(handler)

    with serving(answer) as (url, seen):
        place = http_base(url, Limits(tries=1))
        if when == "later":
            place.read("x", 10, 100)
            good = False
        with pytest.raises(DataUnavailable):
            place.read("x", 10, 100)
        good = True
        for _ in range(2):
            assert place.read("x", 10, 100) == DATA[10:110]
        assert [request["path"] for request in seen[-3:]] == ["/files/x", "/signed/good", "/signed/good"]


def test_an_address_is_forgotten_when_its_bytes_were_wrong() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        (say(302, Location="/signed") if handler.path.endswith("/x") else part())(handler)

    with serving(answer) as (url, seen):
        place = http_base(url, QUICK)
        place.read("x", 10, 100)
        place.forget("x")
        place.forget("y")
        place.read("x", 10, 100)
        assert [request["path"] for request in seen] == ["/files/x", "/signed"] * 2


def test_nobody_asks_us_to_be_quiet_for_longer_than_a_window() -> None:
    with serving(say(429, Retry_After="99999999")) as (url, _):
        place = http_base(url, QUICK)
        for said in ("HTTP status 429", "asked us to wait (300|299) s"):
            with pytest.raises(DataUnavailable, match=said):
                place.read("x", 10, 100)


def test_the_body_of_an_error_is_not_waited_for() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(404)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    with serving(drip) as (url, _):
        began = time.monotonic()
        with pytest.raises(Denied, match="404"):
            http_base(url, Limits(tries=1, attempt_s=0.3)).read("x", 10, 100)
        assert time.monotonic() - began < 2.0


def test_a_silent_server_is_waited_for_only_as_long_as_is_said() -> None:
    with serving(lambda _: time.sleep(3.0)) as (url, _):
        began = time.monotonic()
        with pytest.raises(DataUnavailable, match="Timeout"):
            http_base(url).read("x", 10, 100, 0.2)
        assert time.monotonic() - began < 2.5


def test_nobody_there_is_unavailable() -> None:
    with serving(part()) as (url, _):
        pass
    with pytest.raises(DataUnavailable, match="x: ConnectError"):
        http_base(url, QUICK).read("x", 10, 100)


def test_no_more_requests_at_once_than_allowed() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        part()(handler)

    with serving(slow) as (url, seen):
        place = http_base(url, Limits(in_flight=3))
        place.read("x", 10, 100)
        threads = [threading.Thread(target=place.read, args=("x", 10, 100)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 13
        assert most == 3
