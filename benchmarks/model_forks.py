"""Cases in processes of their own: one that has loaded the libraries forks a child each, bounded in time and memory.

A case that crashes, hangs or eats memory is a row of the table and nothing else. Two such processes have different hash
seeds: one tries, the other replays.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 240, 6 << 30
ROOT = Path(__file__).parents[1]


class Forks:
    """A process that answers one task after another."""

    def __init__(self, hash_seed: int) -> None:
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.model_forks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, *task: str) -> dict[str, Any]:
        """What the child answered; {"died": why} when it did not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Tasks by line on stdin, answers by line on stdout."""
    import torch

    from benchmarks import model_case, model_product  # loaded once, before the first fork

    torch.set_num_threads(1)
    model_product.load_libraries()
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        os.write(answers, (json.dumps(_forked(model_case, *json.loads(line))) + "\n").encode())


def _forked(cases: Any, kind: str, *paths: str) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            answer = _answer(cases, kind, *map(Path, paths))
        except BaseException as error:
            answer = {"died": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"died": _end(status)}


def _answer(cases: Any, kind: str, *paths: Path) -> dict[str, Any]:
    if kind == "try":
        return asdict(cases.try_file(*paths))
    return {"digest": cases.replayed(*paths)}


def _end(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return f"longer than {SECONDS} s" if number == signal.SIGALRM else f"the process ended with signal {number}"


if __name__ == "__main__":
    serve()
