"""A node without a network: says what a node would say, round by round on the run's real chain clock.

Used as the script of every node in the tests of the local subnet's processes. Behaviour by hotkey name and flags only;
FAKE_NODE in the environment holds a JSON object: {"never_ready": [names], "dies": [names], "ignores_term": [names]}.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = "ab" * 32


def main() -> None:
    args = parse()
    folder = Path(args.run_dir) / "nodes" / args.hotkey
    behaviour = json.loads(os.environ.get("FAKE_NODE", "{}"))
    if args.hotkey in behaviour.get("ignores_term", []):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # a helper, as the p2p daemon is one: it has to go with its node
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (folder / "helper.pid").write_text(str(helper.pid))
    print("loading", flush=True)
    if args.hotkey in behaviour.get("dies", []):
        print("error: no such thing", flush=True)
        sys.exit(3)
    events = (folder / "events.jsonl").open("a")

    def say(event: str, round: int | None = None, **fields: object) -> None:
        head = {"time": time.time(), "event": event, "role": "x", "uid": 0, "round": round}
        events.write(json.dumps(head | fields) + "\n")
        events.flush()

    if args.hotkey not in behaviour.get("never_ready", []):
        say("ready", hotkey="x", peer_key="00", state_root=ROOT, block=0)
    for index in range(args.rounds):
        say("phase", index, phase="train")
        time.sleep(behaviour.get("round_s", 60.0))
    helper.kill()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir")
    parser.add_argument("--wallet.hotkey", dest="hotkey")
    parser.add_argument("--rounds", type=int)
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
