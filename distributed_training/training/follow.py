"""What all processes of a node but its first do: hold the model, and train in lockstep with rank 0 until it ends.

    python -m distributed_training.training.follow MEET RANK SIZE      started by a node with --gpus

Rank 0 finds, checks, tells and keeps everything. Its end ends this process, whatever this one is doing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

import torch

from distributed_training.errors import said
from distributed_training.training.device import rank_device
from distributed_training.training.inner import InnerLoop
from distributed_training.training.lockstep import Follower, Hello, RankLost
from distributed_training.training.model import run_model
from distributed_training.training.team import Rank

MakeLoop = Callable[..., InnerLoop]


def follow(rank: Rank, make_loop: MakeLoop = InnerLoop) -> int:
    """Exit code 0 when rank 0 has ended, 1 where this rank could not even begin (rank 0 has heard why)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for rank 0
    team = Follower(rank)
    try:
        hello = team.join()
        with team.attempt():
            loop = _loop(team, hello, make_loop)
        while True:
            _round(team, loop)
    except RankLost:
        return 0
    except Exception as error:
        print(f"rank {rank.number}: {said(error)}", file=sys.stderr)
        return 1
    finally:
        team.close()


def _loop(team: Follower, hello: Hello, make_loop: MakeLoop) -> InnerLoop:
    if hello.threads:
        torch.set_num_threads(hello.threads)
    model = run_model(hello.manifest.model)
    device = rank_device("cuda" if hello.cuda else "cpu", team.rank)
    return make_loop(model, hello.manifest, device, team=team, **hello.choices)


def _round(team: Follower, loop: InnerLoop) -> None:
    head = team.next_round()
    loop.micro_batch, loop.precision = head.micro_batch, "bf16" if head.bf16 else "fp32"
    if loop.compiled and not head.compiled:  # rank 0 found that it does not work here
        loop.compiled = False
    try:
        loop.run(
            None,
            iter(()),
            applied_rounds=head.applied_rounds,
            sketch_seed=None,
            max_steps=sys.maxsize,
            should_stop=lambda: False,
            fresh_moments=head.fresh_moments,
        )
    except RankLost:
        raise
    except Exception:  # rank 0 has heard it, and decides whether there is another round
        loop.shrink()


def _end_with_our_parent() -> None:
    """Its end of the pipe is closed when it ends, in whatever way."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_our_parent, name="end of rank 0", daemon=True).start()
    sys.exit(follow(Rank(int(sys.argv[2]), int(sys.argv[3]), sys.argv[1])))
