"""Small networks of real hosts on one machine: Linux network namespaces around a bridge, shaped, some behind NAT.

    with Namespaces() as net:
        a, b = net.host("a", egress=12_500_000, ingress=12_500_000), net.host("b")
        inner = net.behind_nat("home")
        process = a.popen([sys.executable, "node.py", a.address])

Everything lives in namespaces called dt-PID-NUMBER-NAME, the bridge too: no interface, route or rule of the machine's
own is touched, and nothing inside reaches beyond the bridge. Leaving the block kills what runs inside and removes
it all; what a killed run left behind is removed by the next one. Needs root, iproute2, and iptables or nft for NAT.
Rates are bytes per second. The kernels that we meet have tbf but not netem: for latency see `delay.py`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

SUBNET = "10.77.0"  # of the bridge; hosts get .1, .2, ...
HOME = "192.168.77"  # behind every gateway, as in any home
PREFIX = "dt-"
COMMAND_S = 10.0  # an ip, tc or iptables command takes milliseconds
KILL_S = 3.0
MAX_HOSTS = 200
_NAME = re.compile(rf"{PREFIX}(\d+)-(\d+)-([a-z0-9]+)")
_numbers = itertools.count()


class NamespacesUnavailable(RuntimeError):
    """This machine or user cannot make network namespaces; the text says what is missing."""


def unavailable(nat: bool = False) -> str | None:
    """Why `Namespaces` (with `behind_nat` if `nat`) cannot work here, None if it can. Tries it: 0.1 s."""
    try:
        with Namespaces() as net:
            net.host("probe", egress=1_000_000)
            if nat:
                net.behind_nat("natprobe")
    except NamespacesUnavailable as error:
        return str(error)
    return None


class Host:
    """One namespace with one address. `address` is what others on the bridge see, or the inner one behind NAT."""

    def __init__(self, name: str, netns: str, address: str) -> None:
        self.name = name
        self.netns = netns
        self.address = address
        self._processes: list[subprocess.Popen[Any]] = []

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside; its pid is the program's own. Dies with the namespace and this thread."""
        command = ["ip", "netns", "exec", self.netns, *map(str, argv)]
        process = subprocess.Popen(command, preexec_fn=_die_with_parent, **options)
        self._processes.append(process)
        return process

    def run(self, argv: Sequence[str | Path], timeout_s: float = 60.0) -> str:
        """The program's stdout. Raises subprocess.CalledProcessError or TimeoutExpired."""
        command = ["ip", "netns", "exec", self.netns, *map(str, argv)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s).stdout

    def cut(self) -> None:
        """From now on every packet in and out is lost silently, as if the cable was pulled. Idempotent."""
        self.mend()
        for line in (["-I", "INPUT", "!", "-i", "lo"], ["-I", "OUTPUT", "!", "-o", "lo"]):
            self._filter([*line, "-j", "DROP"])

    def mend(self) -> None:
        """Undo `cut`."""
        for line in (["-D", "INPUT", "!", "-i", "lo"], ["-D", "OUTPUT", "!", "-o", "lo"]):
            with suppress(NamespacesUnavailable):  # there was none
                self._filter([*line, "-j", "DROP"])

    def shape(self, egress: int) -> None:
        """From now on it sends at another rate."""
        _shape(self.netns, "eth0", egress)

    def lose(self, share: float) -> None:
        """From now on so many of the packets that it sends are lost, each by itself: a classic BPF program draws."""
        _command("ip", "-n", self.netns, "link", "set", "eth0", "gso_max_segs", "1")  # a packet is a packet
        _command("tc", "-n", self.netns, "qdisc", "add", "dev", "eth0", "clsact")
        # a random u32; below the limit: drop; else as if there was no filter
        program = f"4,32 0 0 4294963256,53 0 1 {int(share * 2**32)},6 0 0 4294967295,6 0 0 2,"
        _command("tc", "-n", self.netns, "filter", "add", "dev", "eth0", "egress", "bpf", "da", "bytecode", program)

    def received(self) -> int:
        """Bytes that came in over the wire, headers included."""
        return self._statistic("rx_bytes")

    def sent(self) -> int:
        """Bytes that went out over the wire, headers included."""
        return self._statistic("tx_bytes")

    def _statistic(self, name: str) -> int:
        return int(self.run(["cat", f"/sys/class/net/eth0/statistics/{name}"], COMMAND_S))

    def _filter(self, rule: list[str]) -> None:
        _command("ip", "netns", "exec", self.netns, "iptables", "-w", *rule)

    def _close(self) -> None:
        _remove(self.netns)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)


class Namespaces:
    """A bridge and the hosts on it; see the module. Methods raise NamespacesUnavailable with the failed command."""

    def __init__(self) -> None:
        self._run = f"{PREFIX}{os.getpid()}-{next(_numbers)}-"
        self._bridge = self._run + "bridge"
        self._hosts: list[Host] = []
        self._ports = itertools.count(1)

    def __enter__(self) -> Namespaces:
        if os.geteuid() != 0:
            raise NamespacesUnavailable("network namespaces need root")
        if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
            raise NamespacesUnavailable(f"network namespaces need the program {' and '.join(missing)} (iproute2)")
        sweep()
        try:
            self._add(self._bridge)
            _command("ip", "-n", self._bridge, "link", "add", "br0", "type", "bridge")
            _command("ip", "-n", self._bridge, "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def host(self, name: str, *, egress: int | None = None, ingress: int | None = None) -> Host:
        """A host on the bridge that sends at `egress` and receives at `ingress` bytes per second (None: unshaped)."""
        number = next(self._ports)
        if number > MAX_HOSTS:
            raise ValueError(f"at most {MAX_HOSTS} hosts")
        host = self._new(name, f"{SUBNET}.{number}")
        port = f"port{number}"
        self._link(host.netns, "eth0", self._bridge, port)
        _command("ip", "-n", self._bridge, "link", "set", port, "master", "br0", "up")
        _command("ip", "-n", host.netns, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _command("ip", "-n", host.netns, "link", "set", "eth0", "up")
        _shape(host.netns, "eth0", egress)
        _shape(self._bridge, port, ingress)
        return host

    def behind_nat(self, name: str, *, egress: int | None = None, ingress: int | None = None) -> Host:
        """A host behind a masquerading gateway with no port open: it can dial out, nobody can dial in.

        Its `address` is an address of the home network; on the bridge only its gateway is seen, as `gateway_of`.
        """
        gateway = self.host(name + "gw", egress=egress, ingress=ingress)
        inner = self._new(name, f"{HOME}.2")
        self._link(inner.netns, "eth0", gateway.netns, "home0")
        _command("ip", "-n", inner.netns, "addr", "add", f"{HOME}.2/24", "dev", "eth0")
        _command("ip", "-n", inner.netns, "link", "set", "eth0", "up")
        _command("ip", "-n", inner.netns, "route", "add", "default", "via", f"{HOME}.1")
        _command("ip", "-n", gateway.netns, "addr", "add", f"{HOME}.1/24", "dev", "home0")
        _command("ip", "-n", gateway.netns, "link", "set", "home0", "up")
        _command("ip", "netns", "exec", gateway.netns, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        _masquerade(gateway.netns)
        return inner

    def gateway_of(self, inner: Host) -> Host:
        """The gateway in front of a host made by `behind_nat`: the address that others see."""
        return next(host for host in self._hosts if host.name == inner.name + "gw")

    def close(self) -> None:
        """Kill what runs inside, remove everything. Bounded in time, idempotent, never raises."""
        hosts, self._hosts = self._hosts, []
        for host in reversed(hosts):
            host._close()
        _remove(self._bridge)

    def _new(self, name: str, address: str) -> Host:
        if not re.fullmatch(r"[a-z0-9]{1,16}", name):
            raise ValueError(f"a host's name has 1 to 16 small letters and digits: {name!r}")
        host = Host(name, self._run + name, address)
        self._add(host.netns)
        self._hosts.append(host)
        return host

    def _add(self, netns: str) -> None:
        _command("ip", "netns", "add", netns)
        _command("ip", "-n", netns, "link", "set", "lo", "up")

    def _link(self, netns: str, device: str, other_netns: str, other_device: str) -> None:
        # Made inside, so that neither end ever exists in the machine's own namespace.
        veth = ["link", "add", device, "type", "veth", "peer", "name", other_device, "netns", other_netns]
        _command("ip", "-n", netns, *veth)


def sweep() -> None:
    """Remove what dead runs left behind: namespaces of ours whose process is gone. Never raises."""
    for line in _try("ip", "netns", "list").splitlines():
        match = _NAME.fullmatch(line.split()[0]) if line.strip() else None
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(match[0])


def _shape(netns: str, device: str, rate: int | None) -> None:
    """tbf on what leaves `device`; a burst of 10 ms, at least one large packet; a queue of 100 ms."""
    if rate is None:
        return
    burst = max(rate // 100, 70_000)
    limit = burst + max(rate // 10, 150_000)
    shape = ["rate", f"{8 * rate}bit", "burst", str(burst), "limit", str(limit)]
    _command("tc", "-n", netns, "qdisc", "replace", "dev", device, "root", "tbf", *shape)


def _masquerade(netns: str) -> None:
    """Outgoing connections leave with the gateway's address; incoming ones are dropped silently."""
    if shutil.which("iptables"):
        rules = (
            ["-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"],
            ["-A", "FORWARD", "-i", "eth0", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"],
            ["-A", "FORWARD", "-i", "eth0", "-j", "DROP"],
            ["-A", "INPUT", "-i", "eth0", "-j", "DROP"],
        )
        for rule in rules:
            _command("ip", "netns", "exec", netns, "iptables", "-w", *rule)
    elif shutil.which("nft"):
        table = """add table ip dt
add chain ip dt post { type nat hook postrouting priority 100; }
add rule ip dt post oifname "eth0" masquerade
add chain ip dt passing { type filter hook forward priority 0; }
add rule ip dt passing iifname "eth0" ct state established,related accept
add rule ip dt passing iifname "eth0" drop
add chain ip dt incoming { type filter hook input priority 0; }
add rule ip dt incoming iifname "eth0" drop
"""
        _command("ip", "netns", "exec", netns, "nft", "-f", "-", stdin=table)
    else:
        raise NamespacesUnavailable("NAT needs the program iptables or nft")


def _remove(netns: str) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        pids = [int(pid) for pid in _try("ip", "netns", "pids", netns).split()]
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        deadline = time.monotonic() + (0.5 if signal_number == signal.SIGTERM else KILL_S)
        while pids and time.monotonic() < deadline:
            time.sleep(0.02)
            pids = _try("ip", "netns", "pids", netns).split()
    _try("ip", "netns", "del", netns)


def _command(*argv: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NamespacesUnavailable(f"{' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        raise NamespacesUnavailable(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _try(*argv: str) -> str:
    with suppress(NamespacesUnavailable):
        return _command(*argv)
    return ""


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
