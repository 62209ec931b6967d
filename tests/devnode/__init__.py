"""A stand-in for a subtensor development node: websocket JSON-RPC over a local chain, in a real runtime's bytes.

    async with DevNode(chain_file) as node:
        await BittensorChain.connect(endpoint=node.endpoint, ...)

The metadata is the chain's own, so that the SDK's whole transport runs: SCALE, storage keys, eras, nonces, signatures,
the pool's refusals, subscriptions, pruned state. What the calls do is the local chain's business. `Proxy` stands
between the two and makes bad weather.
"""

from devnode.node import DevNode
from devnode.proxy import FAULTS, Proxy
from devnode.root import bare_chain
from devnode.runtime import SPECS, Runtime, runtime

__all__ = ["FAULTS", "SPECS", "DevNode", "Proxy", "Runtime", "bare_chain", "runtime"]
