"""The nodes as processes: start, watch, stop, and leave none behind whatever happens to us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from distributed_training.errors import ConfigError, said
from distributed_training.localnet.layout import REPOSITORY, WALLET, NodeSpec, RunPaths, miners
from distributed_training.localnet.run import guard
from distributed_training.locks import Lock
from distributed_training.protocol.types import Role

STOP_GRACE_S = 6.0  # after SIGTERM; Ctrl-C is to end everything within 10 s
# One thread for every numeric library: the nodes share the cores, and results must not depend on their number.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that is over: exit code, negative for a signal, and the last lines of its log."""

    name: str
    code: int
    log_tail: tuple[str, ...]


@dataclass(slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    log: Path
    reported: bool = field(default=False)


class NodeProcesses:
    """All nodes of one demo; use as a context manager, so that leaving it ends them.

    Each node is the leader of its own session, so its helpers share its process group and Ctrl-C reaches only the demo.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, lock: Lock | None = None) -> None:
        """lock: of the run directory, held until the last process has ended, even if we are killed."""
        given = os.environ if environment is None else environment
        self._environment = {k: v for k, v in given.items() if not k.startswith("DT_")}  # of a person's own node
        self._environment |= dict.fromkeys(THREAD_VARIABLES, "1") | {"PYTHONUNBUFFERED": "1"}
        self._processes: dict[str, _Process] = {}
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=() if lock is None else (lock.fileno(),),
        )

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Output is appended to `log`. Whatever an earlier process of this name left is ended first.

        Raises ConfigError when the log cannot be written.
        """
        if name in self._processes:
            self._sweep(self._processes[name])
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                popen = self._popen(command, output)
        except OSError as error:
            raise ConfigError(f"cannot start {name}: {said(error)}") from None
        self._processes[name] = _Process(popen, log)
        self._tell_guard(f"+{popen.pid}")

    def _popen(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=REPOSITORY,
            env=self._environment,
        )

    def pid(self, name: str) -> int | None:
        """None when it does not run."""
        process = self._processes.get(name)
        return process.popen.pid if process is not None and process.popen.poll() is None else None

    def last_pid(self, name: str) -> int:
        """Of its newest process, over or not. Raises KeyError for a name that was never started."""
        return self._processes[name].popen.pid

    def kill(self, name: str) -> None:
        """SIGKILL to this process alone, not to its helpers; its end is not reported by `newly_ended`."""
        process = self._processes[name]
        process.reported = True
        process.popen.kill()
        process.popen.wait()

    def running(self) -> tuple[str, ...]:
        return tuple(name for name, process in self._processes.items() if process.popen.poll() is None)

    def exit_codes(self) -> dict[str, int | None]:
        """None while it runs."""
        return {name: process.popen.poll() for name, process in self._processes.items()}

    def newly_ended(self) -> tuple[Ended, ...]:
        """Processes that ended since the last call."""
        found: list[Ended] = []
        for name, process in self._processes.items():
            code = process.popen.poll()
            if code is not None and not process.reported:
                process.reported = True
                self._sweep(process)
                found.append(Ended(name, code, tail(process.log)))
        return tuple(found)

    def _sweep(self, process: _Process) -> None:
        """A node is over: end what it may have left in its group."""
        guard.signal_group(process.popen.pid, signal.SIGKILL)
        self._tell_guard(f"-{process.popen.pid}")

    def stop(self) -> None:
        """End every process within STOP_GRACE_S and a moment. Idempotent."""
        running = [p for p in self._processes.values() if p.popen.poll() is None]
        for process in running:
            guard.signal_group(process.popen.pid, signal.SIGTERM)
        until = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < until and any(p.popen.poll() is None for p in running):
            time.sleep(0.05)
        for process in self._processes.values():
            guard.signal_group(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
            self._tell_guard(f"-{process.popen.pid}")

    def close(self) -> None:
        self.stop()
        if self._guard.stdin is not None:
            try:
                self._guard.stdin.close()
            except BrokenPipeError:
                pass
        self._guard.wait()

    def _tell_guard(self, line: str) -> None:
        if self._guard.stdin is None:
            return
        try:
            self._guard.stdin.write(line.encode() + b"\n")
            self._guard.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # without its guard the demo still ends its nodes itself

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def node_command(spec: NodeSpec, paths: RunPaths, specs: Sequence[NodeSpec], rounds: int) -> list[str]:
    """How one node is started: nothing but flags that an operator could type."""
    command = [sys.executable, str(spec.script), "--preset", "local", "--run-dir", str(paths.root)]
    command += ["--wallet.name", WALLET, "--wallet.hotkey", spec.name, "--axon.port", str(spec.port)]
    command += ["--threads", "1", "--rounds", str(rounds)]
    if spec.role is Role.MINER:
        command += ["--steps-per-round", str(spec.steps)]
    if spec.exact_steps:
        command.append("--exact-steps")
    if spec.adversary is not None:
        command += ["--victim-dir", str(paths.node(miners(specs)[0].name))]
        command += ["--fellows", ",".join(str(s.uid) for s in specs if s.adversary == spec.adversary)]
    return command


def joining_command(spec: NodeSpec, paths: RunPaths, rounds: int, netuid: int) -> list[str]:
    """How a newcomer is started who was told the subnet and no more: nothing of the run is given to it."""
    command = [sys.executable, str(spec.script), "--netuid", str(netuid), "--run-dir", str(paths.joined)]
    command += ["--subtensor.chain_endpoint", f"file:{paths.chain}", "--wallet.path", str(paths.wallets)]
    command += ["--wallet.name", WALLET, "--wallet.hotkey", spec.name]
    command += ["--axon.ip", "127.0.0.2", "--axon.port", str(spec.port), "--device", "cpu", "--threads", "1"]
    command += ["--rounds", str(rounds)]
    return command if spec.steps is None else [*command, "--steps-per-round", str(spec.steps)]


def tail(path: Path, lines: int = 12) -> tuple[str, ...]:
    """The last lines of a log, from its last 16 kB."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ()
