"""Network addresses that a person typed: what they have to look like, and whether a stranger could reach them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from distributed_training.errors import ConfigError
from distributed_training.paths import typed

DOCUMENTATION = [ipaddress.IPv4Network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
SHARED = ipaddress.IPv4Network("100.64.0.0/10")  # of providers that give no address of one's own
PUBLIC_NETWORKS = ("finney", "test", "archive")
FILE = "file:"  # before the path of a local chain
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PROXY_SCHEMES = ("http", "https", "socks4", "socks5", "socks5h")


def ipv4(text: str) -> str:
    """Raises ConfigError."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    hint = ""
    if _is_ipv6(text.strip("[]").partition("%")[0]):
        hint = " (IPv6 is not spoken here)"
    elif text.count(":") == 1:
        hint = "; the port has a flag of its own, --axon.port or --axon.external_port"
    elif any(c.isalpha() for c in text):
        hint = "; a host name is not enough, because the chain holds numbers"
    raise ConfigError(f"expected an IPv4 address like 203.0.113.7, got {text!r}{hint}")


def listen(text: str) -> str:
    """IP:PORT to listen on, of PORT, :PORT or IP:PORT; reached from this machine alone if no IP is given. Raises
    ConfigError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError(f"expected PORT or IP:PORT to listen on, such as 9101 or 127.0.0.1:9101, got {text!r}")
    return f"{ipv4('127.0.0.1' if host in ('', 'localhost') else host)}:{int(port)}"


def unreachable(ip: str, *, public: bool) -> str | None:
    """Why no peer can dial this address, None if one could. `public`: peers are all over the Internet."""
    address = ipaddress.IPv4Address(ip)
    if address == ipaddress.IPv4Address("255.255.255.255"):
        return "it is the broadcast address"
    if address.is_multicast:
        return "it is a multicast address"
    if address.is_unspecified or int(address) >> 24 == 0:
        return "it stands for every address of this machine"
    if address.is_reserved:
        return "it is of a reserved range"
    if not public or any(address in network for network in DOCUMENTATION):
        return None
    if address.is_loopback:
        return "it is this machine's own loopback"
    if address.is_link_local:
        return "it is link-local"
    if address in SHARED:
        return "it is your provider's shared address, behind which no port can be opened"
    return "it is a private address of your own network" if address.is_private else None


def is_documentation(ip: str) -> bool:
    return any(ipaddress.IPv4Address(ip) in network for network in DOCUMENTATION)


def chain_node(text: str) -> str:
    """A chain node's ws:// or wss:// address, or file: and a local chain's path. Raises ConfigError."""
    if text.startswith(FILE):
        return f"{FILE}{typed(text.removeprefix(FILE))}"
    if _host(text, ("ws", "wss")) is None:
        raise ConfigError(
            f"expected ws://HOST:PORT or wss://HOST:PORT of a chain node, or file:PATH of a local chain, got {text!r}"
        )
    return text


def is_public_chain(network: str, endpoint: str | None) -> bool:
    """False when the chain is on this machine or in a private network, so that its nodes may be there too."""
    if endpoint is None:
        return network in PUBLIC_NETWORKS
    host = _host(endpoint, ("ws", "wss")) or ""
    try:
        return not ipaddress.ip_address(host).is_private
    except ValueError:
        return host != "localhost"


def check_hub(environ: Mapping[str, str]) -> None:
    """Raises ConfigError for a Hub or a proxy in the environment that no client could use."""
    hub = environ.get("HF_ENDPOINT", "")
    if hub and _host(hub, ("http", "https")) is None:
        raise ConfigError(f"HF_ENDPOINT: expected https://HOST of a Hugging Face Hub, got {hub!r}")
    for name in (*PROXIES, *(name.lower() for name in PROXIES)):
        value = environ.get(name, "")
        if value and _host(value if "://" in value else f"http://{value}", PROXY_SCHEMES) is None:
            raise ConfigError(f"{name}: expected a proxy like http://HOST:PORT")  # it may hold a password


def _host(text: str, schemes: tuple[str, ...]) -> str | None:
    """Of an address in one of these schemes, None if it is none."""
    try:
        parts = urlsplit(text)
        fine = parts.scheme in schemes and not any(c.isspace() for c in text) and parts.port != 0
    except ValueError:  # a port that is none, brackets that do not match
        return None
    return parts.hostname if fine else None


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
