"""Several processes of one machine as one trainer: what they tell each other, over torch.distributed.

Rank 0 is the node and alone has batches. The others hold the same model and go through the same inner loop: each
computes its share of a step's sequences, the gradients are added up, and clipping is the same on all. That is what
DistributedDataParallel means, without its hooks: all gradients lie in one tensor, so one call sums them. Each then
updates tensors of its own, whose moments it keeps, and gives them to the others.

Control goes through the CPU (gloo), gradients and losses from GPU to GPU (NCCL), all of it over the loopback. Rank 0
waits for the others for a bounded time, they for it as long as it lives. Nothing is pickled: messages are numbers and
bytes of known length. What fails in one
rank's part of a step fails in all, before the sum.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed import distributed_c10d

from distributed_training.errors import DeviceLost, LocalFault, named
from distributed_training.protocol.manifest import RunManifest, parse_manifest
from distributed_training.training.device import out_of_memory
from distributed_training.training.team import Head, Rank

if TYPE_CHECKING:
    from distributed_training.training.team import Tokens

TIMEOUT_S = 300.0  # a rank is never behind the others by more than part of a step, or the load of a model
_AS_LONG_AS_IT_LIVES = timedelta(days=365)
_TEXT_BYTES = 400
_END, _STEP, _SHIFTED = range(3)
_FINE, _MEMORY, _DEVICE, _OTHER = range(4)


class RankLost(DeviceLost):
    """A process of the team is gone or does not answer: only a new start has all of them."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the other ranks need of rank 0's settings."""

    manifest: RunManifest
    cuda: bool  # each takes the GPU of its number, else the CPU
    threads: int | None
    choices: dict[str, bool | str] = field(default_factory=dict)  # of the inner loop, by name


class _Ranks:
    """What all ranks do alike, as a `Team`. Of no use before `join`."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.size = rank.number, rank.size
        self._where = rank.meet
        self._met = self._lost = False
        self._shape = (0, 0)  # BS, T

    def close(self) -> None:
        """The others hear nothing more of us, and end. Never raises."""
        if self._met:
            self._met = False
            with suppress(RuntimeError):
                (distributed_c10d._abort_process_group if self._lost else distributed.destroy_process_group)()

    def divide(self, parameters: Sequence[nn.Parameter]) -> Container[nn.Parameter]:
        owners = self._owners(parameters)
        return frozenset(p for p, owner in zip(parameters, owners, strict=True) if owner == self.rank)

    def give(self, parameters: Sequence[nn.Parameter]) -> None:
        self._spread(parameters, self._owners(parameters))

    @contextmanager
    def attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._hear(error)
            raise
        if (theirs := self._hear(None)) is not None:
            raise theirs

    def sum(self, gradient: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        whole = losses.new_zeros(len(losses) * self.size)
        whole[self._share(len(whole))] = losses
        with self._others():
            distributed.all_reduce(gradient)
            distributed.all_reduce(whole)  # x + 0 is x
        return whole

    def _meet(self, timeout: timedelta) -> None:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # nothing of it is for other machines
            os.environ.setdefault(name, "lo" if sys.platform == "linux" else "lo0")
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        with self._others():
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                init_method=self._where,
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
            )
        self._met = True

    def _share(self, num_sequences: int) -> slice:
        share = num_sequences // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def _hear(self, own: Exception | None) -> Exception | None:
        """All say what happened to them; what the first one in trouble says, if there is one."""
        mine = torch.tensor([_kind(own)])
        kinds = [torch.zeros_like(mine) for _ in range(self.size)]
        with self._others():
            distributed.all_gather(kinds, mine)
        first = next((rank for rank, kind in enumerate(kinds) if int(kind)), None)
        if first is None:
            return None
        text = b"" if own is None else named(own).encode()[:_TEXT_BYTES]
        said = self._broadcast(np.frombuffer(text.ljust(_TEXT_BYTES), np.uint8), first).tobytes()
        why = f"process {first} of {self.size}: {said.decode(errors='replace').strip()}"
        return {_MEMORY: MemoryError, _DEVICE: DeviceLost}.get(int(kinds[first]), LocalFault)(why)

    def _broadcast(self, values: np.ndarray, source: int = 0) -> np.ndarray:
        """Those of `source`; the others give an array of the same length and type."""
        tensor = torch.from_numpy(np.array(values))
        with self._others():
            distributed.broadcast(tensor, source)
        return tensor.numpy()

    def _owners(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """The rank of each: the largest first, to whoever has least."""
        owners, load = [0] * len(parameters), [0] * self.size
        for index in sorted(range(len(parameters)), key=lambda index: -parameters[index].numel()):
            owners[index] = load.index(min(load))
            load[owners[index]] += parameters[index].numel()
        return owners

    def _spread(self, parameters: Sequence[nn.Parameter], owners: Sequence[int]) -> None:
        """Each from its owner."""
        with self._others():
            works = [
                distributed.broadcast(parameter.detach(), owner, async_op=True)
                for parameter, owner in zip(parameters, owners, strict=True)
            ]
            for work in filter(None, works):
                work.wait()

    @contextmanager
    def _others(self) -> Iterator[None]:
        """Around what needs all of them."""
        try:
            if self._lost:
                raise RuntimeError("they were lost before")
            yield
        except RuntimeError as error:
            self._lost = True
            raise RankLost(self._without(bool(re.search("timed out|timeout", str(error).lower())))) from error

    def _without(self, silent: bool) -> str:
        return "rank 0 has ended"


class Leader(_Ranks):
    """Rank 0's team."""

    def __init__(self, rank: Rank, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(rank)
        self._timeout_s = timeout_s

    def join(self, hello: Hello) -> None:
        """Wait for the others, until each has the model on its device. Raises what kept one of them from it."""
        self._meet(timedelta(seconds=self._timeout_s))
        self._shape = hello.manifest.data.batch_size, hello.manifest.data.sequence_length
        settings = [hello.cuda, hello.threads, hello.choices]
        for part in (hello.manifest.canonical(), json.dumps(settings).encode()):
            self._broadcast(np.array([len(part)]))
            self._broadcast(np.frombuffer(part, np.uint8))
        with self.attempt():
            pass

    @contextmanager
    def round(
        self, head: Head, parameters: Sequence[nn.Parameter], batches: Iterator[Tokens]
    ) -> Iterator[Iterator[Tokens]]:
        self._broadcast(np.array(astuple(head)))
        self._spread(parameters, [0] * len(parameters))
        try:
            yield self._shares(batches)
        finally:
            if not self._lost:
                self._broadcast(np.full(1 + math.prod(self._shape), _END))

    def shifted(self, parameters: Sequence[nn.Parameter]) -> None:
        self._broadcast(np.full(1 + math.prod(self._shape), _SHIFTED))
        self._spread(parameters, [0] * len(parameters))

    def _shares(self, batches: Iterator[Tokens]) -> Iterator[Tokens]:
        for batch in batches:
            self._broadcast(np.concatenate([[_STEP], batch.reshape(-1)]))
            yield batch[self._share(len(batch))]

    def _without(self, silent: bool) -> str:
        what = f"gave no answer in {self._timeout_s:g} s" if silent else "is gone"
        return f"one of the {self.size} processes that train together {what}; a new start of the node has all of them"


class Follower(_Ranks):
    """Any other's. RankLost, of each method, is the end of rank 0."""

    def join(self) -> Hello:
        self._meet(_AS_LONG_AS_IT_LIVES)
        manifest = parse_manifest(self._receive())
        self._shape = manifest.data.batch_size, manifest.data.sequence_length
        return Hello(manifest, *json.loads(self._receive()))

    def next_round(self) -> Head:
        told = map(int, self._broadcast(np.zeros(5, np.int64)))
        applied_rounds, fresh_moments, micro_batch, compiled, bf16 = told
        return Head(applied_rounds, bool(fresh_moments), micro_batch, bool(compiled), bool(bf16))

    @contextmanager
    def round(
        self, head: Head, parameters: Sequence[nn.Parameter], batches: Iterator[Tokens]
    ) -> Iterator[Iterator[Tokens]]:
        """Leaves the round, also one that failed here, when rank 0 does."""
        self._spread(parameters, [0] * len(parameters))
        shares = self._shares(parameters)
        try:
            yield shares
        except RankLost:
            raise
        except Exception as error:
            for _ in shares:  # a step begins that this rank cannot do
                self._hear(error)
            raise

    def shifted(self, parameters: Sequence[nn.Parameter]) -> None:
        """Rank 0's come with its next word."""

    def _shares(self, parameters: Sequence[nn.Parameter]) -> Iterator[Tokens]:
        while (told := self._broadcast(np.zeros(1 + math.prod(self._shape), np.int64)))[0] != _END:
            if told[0] == _SHIFTED:
                self._spread(parameters, [0] * len(parameters))
                continue
            yield told[1:].reshape(self._shape)[self._share(self._shape[0])]

    def _receive(self) -> bytes:
        return self._broadcast(np.zeros(int(self._broadcast(np.zeros(1, np.int64))[0]), np.uint8)).tobytes()


def _kind(error: Exception | None) -> int:
    if error is None:
        return _FINE
    if out_of_memory(error):
        return _MEMORY
    return _DEVICE if isinstance(error, DeviceLost) else _OTHER
