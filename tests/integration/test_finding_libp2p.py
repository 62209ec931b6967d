"""A stranger over real connections: on no roster, listening nowhere, it gets the files of a run all the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distributed_training.finding.content import Wanted, fetch
from distributed_training.finding.serving import FileService, PeerSource
from distributed_training.network.budgets import Budget
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.peers import PeerBook

DATA = bytes(range(256)) * 7_000  # within what strangers get at once


async def test_a_stranger_gets_the_files_of_a_run(tmp_path: Path) -> None:
    holder = Libp2pTransport(tmp_path / "holder.key", "127.0.0.1", 0, hints=False)
    stranger = Libp2pTransport(tmp_path / "stranger.key", port=None, hints=False)
    try:
        identity = PeerIdentity.load_or_create(tmp_path / "holder.key")
        book = PeerBook(holder, 1, bytes(32), identity.sign, verify_peer)
        book.limit(Budget(1, 1.0, 1, 1.0), 1e6)  # members are limited, so strangers share the small account
        wanted = Wanted("pages.bin", hashlib.sha256(DATA).digest(), 1 << 24)
        FileService(book, {wanted.prefix: memoryview(DATA)})
        await holder.start()
        await stranger.start()
        assert holder.address is not None
        stranger.learn(holder.peer_key, holder.address)
        giver = PeerSource(stranger, holder.peer_key, "uid 1")
        assert await fetch(wanted, tmp_path / "pages.bin", [giver]) == "uid 1"
        assert (tmp_path / "pages.bin").read_bytes() == DATA and holder.refusals == 0
    finally:
        await stranger.stop()
        await holder.stop()
