"""The page of a run: `python -m distributed_training.dashboard --help`."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence

from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import Parser, chain_arguments, file, folder, new_folder, whole
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Show a run in a browser: loss, tokens, who took part, the round as a timeline, scores and why a miner has its weight,
what the chain says. It reads and never writes; it needs no login, asks no other machine, and answers this one only.
"""
EXAMPLES = """\
  of a demo, or of a node: as it goes on
    python -m distributed_training.dashboard --run-dir runs/demo
  of event files, wherever they come from
    python -m distributed_training.dashboard --events all.jsonl
  a copy for any web server, once
    python -m distributed_training.dashboard --run-dir runs/demo \\
        --page-dir public
"""
EPILOG = "From another machine: ssh -L 8765:127.0.0.1:8765 HOST, then http://127.0.0.1:8765/ there."
PORT = 8765


def parser() -> Parser:
    made = Parser(
        prog="python -m distributed_training.dashboard", description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG
    )
    add = made.add_argument
    what = made.add_mutually_exclusive_group()
    what.add_argument("--run-dir", type=folder, metavar="DIR", help="run directory of a demo or of a node")
    what.add_argument("--events", type=file, nargs="+", metavar="FILE", help="event files of nodes or a simulation")
    help_ = "what the chain says of this subnet: alone, or beside the events of a node"
    add("--netuid", type=whole(1, 65535, "a subnet"), metavar="N", help=help_)
    chain_arguments(made, "finney")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: this machine only)")
    add("--port", type=whole(0, 65535, "a port"), default=PORT, metavar="N", help=f"(default {PORT}; 0: any free one)")
    add(
        "--page-dir",
        type=new_folder,
        metavar="DIR",
        help="write the page as files into this folder, new or its own, and end",
    )
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    if not (options.run_dir or options.events or options.netuid):
        raise ConfigError("expected --run-dir DIR, --events FILE... or --netuid N (--help lists all options)")
    from distributed_training.dashboard.about import check_run_dir
    from distributed_training.dashboard.chain import ChainWatch
    from distributed_training.dashboard.copy import check_own, copy_once
    from distributed_training.dashboard.sampling import Sampler
    from distributed_training.dashboard.server import listen, serve
    from distributed_training.dashboard.site import Site

    if options.run_dir is not None:
        check_run_dir(options.run_dir)
    if options.page_dir is not None:
        check_own(options.page_dir)
    site, watch = Site(options.run_dir, options.events or (), live=options.page_dir is None), None
    file = None if options.netuid or options.run_dir is None else options.run_dir / "chain.sqlite"
    if options.netuid or (file is not None and file.is_file()):
        watch = ChainWatch(site, options.netuid, options.network, options.endpoint, file)
    if options.page_dir is not None:
        count = copy_once(site, watch, options.page_dir)
        print(f"page: {options.page_dir / 'index.html'} and {count} documents, for any web server")
        return 0
    if options.run_dir is not None:
        site.sample = Sampler(options.run_dir / "checkpoints")
    listener = listen(options.host, options.port)
    site.start()
    if watch is not None:
        watch.start()
    host, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(host).is_loopback:
        print(f"warning: whoever reaches {host} can read this page; it has no login", file=sys.stderr, flush=True)
    print(f"page: http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C ends it)", flush=True)
    try:
        serve(site, listener, options.host)
    finally:
        site.stop()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
