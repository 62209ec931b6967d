"""A Bittensor subnet that trains one language model on everybody's GPUs, peer to peer."""

__version__ = "0.1.0"

PROTOCOL_VERSION = 7
