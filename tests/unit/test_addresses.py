"""Addresses that a person typed: refused in one line where nobody could use them."""

from __future__ import annotations

import pytest

from distributed_training.addresses import chain_node, check_hub, ipv4, is_public_chain, unreachable
from distributed_training.errors import ConfigError
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config, require_address

PUBLIC = ["--netuid", "38", "--run-dir", "/tmp/run", "--wallet.path", "/tmp/keys"]
LOCAL = ["--preset", "local", "--run-dir", "/tmp/run"]


@pytest.mark.parametrize(
    ("ip", "why"),
    [
        ("127.0.0.1", "loopback"), ("10.1.2.3", "private"), ("192.168.1.5", "private"), ("172.16.0.1", "private"),
        ("169.254.1.1", "link-local"), ("100.64.0.1", "provider"), ("224.0.0.1", "multicast"),
        ("0.0.0.0", "every address"), ("0.1.2.3", "every address"), ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "reserved"),
    ],
)  # fmt: skip
def test_an_address_that_nobody_can_dial_is_refused(ip: str, why: str) -> None:
    assert why in (unreachable(ip, public=True) or "")
    with pytest.raises(ConfigError, match=rf"^--axon\.external_ip {ip}: nobody could reach this node there, .*{why}"):
        require_address(load_config(Role.MINER, [*PUBLIC, "--axon.external_ip", ip]))
    local = why in ("loopback", "private", "link-local", "provider")
    assert (unreachable(ip, public=False) is None) == local


def test_who_listens_on_loopback_announces_that_too() -> None:
    with pytest.raises(ConfigError, match=r"^--axon\.ip 127\.0\.0\.1: .*loopback"):
        require_address(load_config(Role.OWNER, [*PUBLIC, "--axon.ip", "127.0.0.1"]))
    require_address(load_config(Role.MINER, LOCAL))
    own_chain = [*PUBLIC, "--subtensor.chain_endpoint", "ws://10.0.0.2:9944", "--axon.external_ip", "10.0.0.7"]
    require_address(load_config(Role.MINER, own_chain))
    for ip in ("203.0.113.7", "8.8.8.8"):
        require_address(load_config(Role.MINER, [*PUBLIC, "--axon.external_ip", ip]))


@pytest.mark.parametrize(
    ("text", "hint"),
    [("fe80::1", "IPv6"), ("1.2.3.4:80", "flag of its own"), ("my.host", "host name"), ("1.2.3", "got '1.2.3'")],
)
def test_what_is_no_address_says_what_was_expected(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        ipv4(text)
    with pytest.raises(ConfigError, match=rf"^--axon\.external_ip: expected an IPv4 address .*{hint}"):
        load_config(Role.MINER, [*PUBLIC, "--axon.external_ip", text])


@pytest.mark.parametrize("text", ["http://x", "ws://", "ws://a b", "wss://x:99999", "ws://x:0", "x:9944"])
def test_a_chain_node_is_a_websocket_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--subtensor\.chain_endpoint: expected ws://HOST:PORT"):
        load_config(Role.MINER, [*PUBLIC, "--subtensor.chain_endpoint", text])


def test_a_chain_is_public_unless_it_is_here() -> None:
    assert chain_node("wss://node.example") and is_public_chain("finney", "wss://node.example")
    assert is_public_chain("finney", None) and not is_public_chain("local", None)
    assert not is_public_chain("finney", "ws://localhost:9944") and not is_public_chain("finney", "ws://[::1]:9944")


@pytest.mark.parametrize(
    ("name", "value", "fine"),
    [
        ("HF_ENDPOINT", "huggingface.co", False), ("HF_ENDPOINT", "ftp://x", False), ("HF_ENDPOINT", "", True),
        ("HF_ENDPOINT", "http://127.0.0.1:8000", True), ("HTTPS_PROXY", "tcp://x:1", False),
        ("https_proxy", "proxy:3128", True), ("ALL_PROXY", "socks5://me:secret@x:99999", False),
    ],
)  # fmt: skip
def test_a_hub_or_proxy_that_no_client_can_use_is_named(name: str, value: str, fine: bool) -> None:
    if fine:
        check_hub({name: value})
        return
    with pytest.raises(ConfigError, match=f"^{name}: expected") as caught:
        check_hub({name: value})
    assert "secret" not in str(caught.value)
