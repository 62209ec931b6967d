"""The shortest conversation over a transport."""

from __future__ import annotations

from distributed_training.network.base import Transport


async def ask(
    transport: Transport, peer_key: bytes, method: str, request: bytes, *, max_bytes: int, timeout_s: float
) -> bytes:
    """One request frame, one answer frame of at most `max_bytes`, then the stream is closed."""
    stream = await transport.open(peer_key, method, timeout_s)
    try:
        await stream.write(request, timeout_s)
        return await stream.read(max_bytes, timeout_s)
    finally:
        await stream.close()
