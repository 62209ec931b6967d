"""What others' all-reduce takes: a process of stock hivemind in a fixed group, or of gloo, each with a vector of fp32.

    python -m benchmarks.allreduce_stock hivemind-fp32 NUMBER COUNT PARAMS FOLDER

hivemind-fp16, hivemind-u8 and gloo likewise. It prints a JSON line for each of its rounds: when it began and ended.
hivemind's runner is used without DHT and matchmaking; `extract` of its 8 bit codec is mended for the numpy of today.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

PATIENCE_S = 120.0
WARM_UP = 1 << 20  # parameters of the first round, which is not counted


async def hivemind(codec: str, number: int, count: int, params: int, folder: Path) -> None:
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    from hivemind.averaging.allreduce import AllReduceRunner
    from hivemind.p2p import P2P, PeerID

    compression = _codec(codec)
    p2p: Any = await P2P.create(startup_timeout=60)
    address = [str(maddr) for maddr in await p2p.get_visible_maddrs()]
    _publish(folder / f"peer-{number}", json.dumps({"id": p2p.peer_id.to_base58(), "at": address}))
    peers = [json.loads(_await(folder / f"peer-{i}")) for i in range(count)]
    ids = [PeerID.from_base58(peer["id"]) for peer in peers]
    for i in range(number):
        await _connect(p2p, ids[i], peers[i]["at"])
    for turn, size in enumerate((min(params, WARM_UP), params)):
        tensor = torch.randn(size, generator=torch.Generator().manual_seed(number))
        runner = AllReduceRunner(
            p2p=p2p, servicer_type=AllReduceRunner, prefix=str(turn), group_id=b"group", tensors=[tensor],
            ordered_peer_ids=ids, peer_fractions=(1 / count,) * count, weight=1.0, compression=compression,
        )  # fmt: skip
        await runner.add_p2p_handlers(p2p, namespace=str(turn))
        await asyncio.to_thread(_meet, folder, f"turn-{turn}", number, count)
        began = time.monotonic()
        async for delta in runner:
            tensor.add_(delta)
        say(began)
    await asyncio.to_thread(_meet, folder, "end", number, count)  # others may still read from us
    await p2p.shutdown()


async def _connect(p2p: Any, peer_id: Any, addresses: list[str]) -> None:
    from hivemind.utils.multiaddr import Multiaddr

    await p2p._client.connect(peer_id, [Multiaddr(address.partition("/p2p/")[0]) for address in addresses])


def _codec(name: str) -> Any:
    import numpy as np
    from hivemind.compression import Float16Compression, NoCompression, Uniform8BitQuantization

    class Mended(Uniform8BitQuantization):
        """numpy 2.4 makes no int of an array of one."""

        def extract(self, serialized_tensor: Any) -> torch.Tensor:
            size = int(np.frombuffer(serialized_tensor.buffer, count=1, dtype=np.int64)[0])
            book = np.frombuffer(serialized_tensor.buffer, offset=8, count=size, dtype=self.codebook_dtype)
            found = np.frombuffer(serialized_tensor.buffer, offset=8 + book.nbytes, dtype=self.indices_dtype)
            indices = torch.as_tensor(found, dtype=torch.int64).reshape(tuple(serialized_tensor.size))
            return torch.as_tensor(book)[indices]

    if name == "u8":
        from hivemind.compression import serialization

        mended = Mended()
        serialization._BASE_COMPRESSION_TYPES["UNIFORM_8BIT"] = mended
        return mended
    return Float16Compression() if name == "fp16" else NoCompression()


def gloo(number: int, count: int, params: int, folder: Path) -> None:
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=number, world_size=count)
    for size in (min(params, WARM_UP), params):
        tensor = torch.randn(size, generator=torch.Generator().manual_seed(number))
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(tensor)
        tensor /= count
        say(began)
    dist.barrier()
    dist.destroy_process_group()


def say(began: float) -> None:
    print(json.dumps({"began": began, "ended": time.monotonic()}), flush=True)


def _publish(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _await(path: Path) -> str:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path.name} did not come")
        time.sleep(0.01)
    return path.read_text()


def _meet(folder: Path, where: str, number: int, count: int) -> None:
    """Files are enough for some processes to wait for each other."""
    _publish(folder / f"{where}-{number}", "")
    for i in range(count):
        _await(folder / f"{where}-{i}")


def main(kind: str, number: int, count: int, params: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if kind == "gloo":
        gloo(number, count, params, folder)
    else:
        asyncio.run(hivemind(kind.removeprefix("hivemind-"), number, count, params, folder))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
