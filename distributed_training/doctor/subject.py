"""Who is examined: a role and its configuration, and what the checks share of it, made once and closed at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_training.chain.keys import LocalKey, load_public_key, unopened
from distributed_training.devices import Gpu, seen_gpus
from distributed_training.doctor.base import Needed, Unmet, in_thread
from distributed_training.doctor.chain import ENDPOINT_S, READ_S, Seen, Subnet, ask_all, load_sdk, subnet_of
from distributed_training.doctor.device import Device, device_of
from distributed_training.doctor.run import find_run
from distributed_training.errors import ConfigError
from distributed_training.locks import Holder, held
from distributed_training.preflight import own_hotkey
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.settings.config import RUN_PLACE, NodeConfig

if TYPE_CHECKING:
    from distributed_training.averaging.memory import Shapes
    from distributed_training.doctor.chain import Sdk
    from distributed_training.network.libp2p import Libp2pTransport

LOADING_S = 14.5  # torch alone takes several seconds on a busy machine
KEYLESS = "not asked without the hotkey"
CHAIN_S, RUN_S = ENDPOINT_S + 6.0, 14.0  # who looks for the run asks the chain first, then its nodes


@dataclass(slots=True)
class Subject:
    """`scratch`: a folder of this run of the doctor alone, for files that have to be somewhere. `stack` closes what is
    opened. `node`: the process that runs this very node here now, which must not be disturbed."""

    role: Role
    config: NodeConfig
    scratch: Path
    stack: AsyncExitStack
    node: Holder | None = None
    hotkey: Needed[LocalKey] = field(init=False)
    public_key: Needed[bytes] = field(init=False)  # enough to ask the chain about us
    sdk: Needed[Sdk] = field(init=False)  # loaded before torch: most checks ask the chain first
    endpoints: Needed[list[Seen]] = field(init=False)  # of the chain
    subnet: Needed[Subnet] = field(init=False)  # by the first of them that answers
    found: Needed[tuple[NodeConfig, RunManifest]] = field(init=False)  # the configuration in the run's folder
    manifest: Needed[RunManifest] = field(init=False)
    shapes: Needed[Shapes] = field(init=False)  # of the run's model
    num_coords: Needed[int] = field(init=False)
    transport: Needed[Libp2pTransport] = field(init=False)  # a stranger's: it listens nowhere, its peer key is new
    gpus: Needed[tuple[Gpu, ...]] = field(init=False)
    device: Needed[Device] = field(init=False)

    def __post_init__(self) -> None:
        self.node = running(self.config)
        self.hotkey = Needed(KEYLESS, lambda: in_thread(self._hotkey))
        self.public_key = Needed(KEYLESS, lambda: in_thread(self._public_key))
        self.sdk = Needed("not asked without bittensor", lambda: in_thread(load_sdk), LOADING_S)
        asked = partial(ask_all, self.sdk, self.config, self.scratch, self.stack)
        self.endpoints = Needed("not asked without a chain", asked, CHAIN_S)
        self.subnet = Needed("not asked without what the chain says of the subnet", self._subnet, CHAIN_S + READ_S)
        self.found = Needed("not asked without the run's manifest", partial(find_run, self), RUN_S)
        self.manifest = Needed("not asked without the run's manifest", self._manifest, RUN_S)
        self.shapes = Needed("not asked without the run's model", self._shapes, LOADING_S)
        self.num_coords = Needed("not asked without the run's model", self._num_coords, LOADING_S)
        self.transport = Needed("not asked without the p2p daemon", self._transport, LOADING_S)
        self.gpus = Needed("not asked before the GPUs answer", lambda: in_thread(seen_gpus))
        self.device = Needed("not asked without a device", self._device, LOADING_S)

    def _hotkey(self) -> LocalKey:
        """Raises ConfigError. Nobody is asked for a password."""
        wallet = self.config.wallet
        if (reason := unopened(wallet.path, wallet.name, wallet.hotkey)) is not None:
            raise ConfigError(reason)
        return own_hotkey(self.config)

    def _public_key(self) -> bytes:
        wallet = self.config.wallet
        return load_public_key(wallet.path, wallet.name, wallet.hotkey)

    async def _subnet(self) -> Subnet:
        return await subnet_of(await self.endpoints.get())

    async def _manifest(self) -> RunManifest:
        return (await self.found.get())[1]

    async def _device(self) -> Device:
        gpus = await self.gpus.get()
        await self._after_sdk()
        return await device_of(self.config, gpus, measure=self.node is None)

    async def _after_sdk(self) -> None:
        with suppress(Unmet):
            await self.sdk.get()

    async def _shapes(self) -> Shapes:
        def load() -> Callable[[dict[str, Any]], Shapes]:
            from distributed_training.training.bounds import MOST_PARAMETERS  # late: it loads torch
            from distributed_training.training.model import parameter_shapes

            return lambda config: parameter_shapes(config, MOST_PARAMETERS)

        await self._after_sdk()
        shapes_of = await in_thread(load)  # meanwhile others look for the manifest
        config = dict((await self.manifest.get()).model.config)
        return await in_thread(lambda: shapes_of(config))

    async def _num_coords(self) -> int:
        return sum(math.prod(shape) for _, shape in await self.shapes.get())

    async def _transport(self) -> Libp2pTransport:
        def load() -> type[Libp2pTransport]:
            from distributed_training.network.libp2p import Libp2pTransport  # late: it loads torch

            return Libp2pTransport

        await self._after_sdk()
        transport = (await in_thread(load))(self.scratch / "identity.key", port=None, hints=False)
        self.stack.push_async_callback(transport.stop)
        await transport.start()
        return transport


def running(config: NodeConfig) -> Holder | None:
    """Who runs a node of this hotkey here, of whichever run. Raises nothing."""
    parts = config.run_dir.parts
    runs = [config.run_dir]
    if config.run_is_open:
        at = parts.index(RUN_PLACE)
        runs = list(Path(*parts[:at]).glob("*"))
    return next(filter(None, (held(run / "nodes" / config.wallet.hotkey) for run in runs)), None)
