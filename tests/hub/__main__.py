"""The hub as a process: python tests/hub/__main__.py --root DIR --endpoint-file FILE."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

if not __package__:  # run as a file: the package is the folder it lies in
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hub.blobs import write_atomically
from hub.context import DEFAULT_TOKENS, Settings, User
from hub.server import TestHub


def _token(text: str) -> tuple[str, User]:
    """TOKEN:USER:write or TOKEN:USER:read, then :ORG for each organisation it may write for."""
    token, name, role, *orgs = text.split(":")
    if role not in ("write", "read"):
        raise argparse.ArgumentTypeError(f"{role} is neither write nor read")
    return token, User(name, "write" if role == "write" else "read", tuple(orgs))


def _arguments() -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--endpoint-file", type=Path, help="gets the address, once the hub listens")
    parser.add_argument("--token", type=_token, action="append", help=f"{_token.__doc__} Default: hf_test may all")
    parser.add_argument("--faults", type=json.loads, default=[], help="JSON: a list of faults, as for /admin/faults")
    parser.add_argument("--cdn-host", default=defaults.cdn_host, help="the host in signed addresses; '' for the Hub's")
    parser.add_argument("--url-lifetime", type=float, default=defaults.url_lifetime_s, help="seconds")
    parser.add_argument("--part-bytes", type=int, default=defaults.part_bytes, help="larger uploads come in parts")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    tokens = dict(args.token) if args.token else DEFAULT_TOKENS
    settings = Settings(tokens, part_bytes=args.part_bytes, url_lifetime_s=args.url_lifetime, cdn_host=args.cdn_host)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    hub = TestHub(args.root, host=args.host, port=args.port, settings=settings)
    hub.faults.add_json(args.faults)
    with hub:
        if args.endpoint_file:
            write_atomically(args.endpoint_file, hub.endpoint.encode())
        print(hub.endpoint, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
