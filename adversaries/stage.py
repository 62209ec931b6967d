"""Where an attack meets the node: its worker, its chain and its transport are put around the honest ones."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from attack import Attack, Bench

from distributed_training.assembly import Adapters
from distributed_training.chain.base import Chain
from distributed_training.engine import Engine
from distributed_training.network.base import Stream, StreamHandler, Transport
from distributed_training.node import main
from distributed_training.preflight import prepare
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Field, Role
from distributed_training.roles.mining.work import WorkResult, WorkTask
from distributed_training.settings.arguments import Parser
from distributed_training.settings.entry import run_main


class Staged:
    """An attack in a node: `worker` and `wrap` are what `node.main` and `assembly.live` take.

    bench: there once the node has made its worker; a validator has none.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.bench: Bench | None = None

    def worker(self, engine: Engine, manifest: RunManifest) -> Staged:
        former, self.bench = self.bench, Bench(engine, manifest)
        if former is not None:  # the node was started again
            self.bench.cost = former.cost
        return self

    def work(self, task: WorkTask) -> WorkResult:
        assert self.bench is not None
        return self.attack.work(task, self.bench)

    def wrap(self, doors: Adapters) -> Adapters:
        return dataclasses.replace(
            doors,
            chain=cast(Chain, _Chain(doors, self.attack)),
            transport=cast(Transport, _Transport(doors, self.attack)),
            reduce=self.attack.reduce,
            encode=self.attack.encode,
        )


class _Chain:
    """`chain.base.Chain`: every commitment passes the attack."""

    def __init__(self, doors: Adapters, attack: Attack) -> None:
        self._doors, self._attack = doors, attack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._doors.chain, name)

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        commitment = decode_commitment(fields)
        if commitment is not None:
            fields = encode_commitment(await self._attack.say(commitment, self._doors))
        return await self._doors.chain.commit(fields, until)


class _Transport:
    """`network.base.Transport`: every stream passes the attack, whoever opened it."""

    def __init__(self, doors: Adapters, attack: Attack) -> None:
        self._doors, self._attack = doors, attack
        self._beside: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._doors.transport, name)

    def serve(self, method: str, handler: StreamHandler) -> None:
        async def answer(stream: Stream) -> None:
            await self._attack.answer(method, stream, handler)

        self._doors.transport.serve(method, answer)

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> Stream:
        return await self._attack.open(peer_key, method, timeout_s, self._doors)

    async def start(self) -> None:
        await self._doors.transport.start()
        self._beside = asyncio.create_task(self._attack.beside(self._doors), name="beside")

    async def stop(self) -> None:
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.wait({self._beside})
        await self._doors.transport.stop()


def uids(text: str) -> tuple[int, ...]:
    return tuple(int(uid) for uid in text.split(","))


def parse(kind: type[Attack], argv: Sequence[str]) -> tuple[Attack, list[str]]:
    """The attack as its flags say, and the node's own flags. Raises ConfigError."""
    epilog = "and all options of neurons/miner.py, or neurons/validator.py for a validator"
    parser = Parser(sys.modules[kind.__module__].__doc__ or "", epilog=epilog)
    read = {"tuple[int, ...]": uids, "Path": Path, "float": float, "int": int}
    for each in (field for field in dataclasses.fields(kind) if field.type in read):
        name = each.name.replace("_", "-")
        parser.add_argument(f"--{name}", metavar=name.upper(), type=read[str(each.type)])
    own, rest = parser.parse_known_args(argv)
    return kind(**{name: value for name, value in vars(own).items() if value is not None}), rest


def run(kind: type[Attack], role: Role = Role.MINER) -> int:
    """The program of an attack: the flags of an honest node, and the attack's own."""
    return run_main(partial(_start, kind, role))


def _start(kind: type[Attack], role: Role) -> int:
    attack, rest = parse(kind, sys.argv[1:])
    staged = Staged(attack)
    return main(role, prepare(role, rest), staged.worker, staged.wrap)
