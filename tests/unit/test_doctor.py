"""The doctor's checks of this machine, on real files, limits and processes; how a set of checks is run."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from distributed_training.doctor.__main__ import main
from distributed_training.doctor.base import Check, Finding, Needed, Unmet, in_thread, run_checks
from distributed_training.doctor.cheap import at_a_start
from distributed_training.doctor.machine import folder_findings
from distributed_training.doctor.packages import checkout_finding, loadable, package_findings, python_finding
from distributed_training.doctor.show import document, exit_code
from distributed_training.doctor.wallet import mode_finding
from distributed_training.errors import ConfigError
from distributed_training.locks import Lock, held
from distributed_training.memory import memory_bytes
from distributed_training.network.listeners import listener
from distributed_training.network.ports import free_port
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config

PYPROJECT = '[project]\ndependencies = ["pydantic>=2.10", "Pydantic_Settings>=2", "{other}"]\n'


def check(name: str, found: Finding | Exception | float) -> Check[str]:
    async def ask(subject: str) -> Sequence[Finding]:
        if isinstance(found, Exception):
            raise found
        if isinstance(found, float):
            await asyncio.sleep(found)
        return [found] if isinstance(found, Finding) else []

    return Check(name, ask, slow_fix="reboot", limit_s=0.2)


async def test_checks_answer_in_their_order_and_none_of_them_can_spoil_another() -> None:
    fine = Finding("fine", "ok", "all well")
    checks = [
        check("slow", 60.0),
        check("unmet", Unmet("not asked without a chain")),
        check("broken", ZeroDivisionError("a mistake")),
        check("fine", fine),
    ]
    began = time.monotonic()
    found = [finding async for finding in run_checks("", checks)]
    assert time.monotonic() - began < 5
    assert [f.name for f in found] == ["slow", "unmet", "broken", "fine"] and found[3] == fine
    assert found[0].state in ("fail", "warn") and "in time" in found[0].found and found[0].fix
    assert found[1] == Finding("unmet", "skipped", "not asked without a chain")
    assert found[2].state == "warn" and "ZeroDivisionError: a mistake" in found[2].found


async def test_what_several_checks_need_is_made_once_and_its_trouble_is_told_once() -> None:
    made = list[int]()

    async def make() -> int:
        made.append(1)
        await asyncio.sleep(0.01)
        if len(made) > 1:
            raise ConfigError("no such thing")
        return 7

    needed = Needed("not asked without it", make)
    assert await asyncio.gather(needed.made(), needed.get(), needed.get()) == [7, 7, 7] and made == [1]
    missing = Needed("not asked without it", make)
    with pytest.raises(ConfigError, match="no such thing"):
        await missing.made()
    with pytest.raises(Unmet, match=r"^not asked without it$"):
        await missing.get()
    with pytest.raises(Unmet, match=r"^not asked without a key$"):
        await Needed("without it", lambda: Needed("not asked without a key", missing.made).get()).get()


async def test_a_thread_that_never_ends_holds_nobody_up() -> None:
    assert await in_thread(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_thread(lambda: time.sleep(30))


def test_only_what_fails_makes_the_exit_code() -> None:
    found = [Finding("a", "ok", ""), Finding("b", "warn", "x", "y"), Finding("c", "skipped", "z")]
    assert exit_code(found) == 0 and exit_code([*found, Finding("d", "fail", "x", "y")]) == 1
    told = json.loads(document(found, 0, role="miner"))
    assert told["ok"] and told["role"] == "miner" and told["findings"][1]["fix"] == "y"


@pytest.mark.parametrize(
    ("argv", "found", "fix"),
    [
        (["--role", "miner", "--json", "--preset", "lcal"], "got 'lcal'", "did you mean local?"),
        (["--role", "miner", "--json", "--preset", "local", "--axon.prt", "1"], "unknown option", "--axon.port"),
        (["--json"], "--role", "--help"),
        (["--json", "--role", "mner"], "invalid choice: 'mner'", "--help"),
    ],
)
def test_a_wrong_command_line_is_one_document_too(
    argv: list[str], found: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError):
        main(argv)
    told = json.loads(capsys.readouterr().out)
    wrong = told["findings"][-1]
    assert (told["exit_code"], wrong["name"], wrong["state"]) == (2, "command line", "fail")
    assert found in wrong["found"] and fix in wrong["fix"]


def test_a_python_that_does_not_fit_is_the_end_of_it() -> None:
    assert python_finding((3, 13, 1)).state == "ok"
    old = python_finding((3, 10, 4))
    assert old.state == "fail" and old.found == "3.10.4, expected 3.11 to 3.14" and "setup.sh" in old.fix
    assert not loadable([old]) and loadable([python_finding()])


def checkout(folder: Path, other: str, **pins: str) -> Path:
    (folder / "pyproject.toml").write_text(PYPROJECT.format(other=other))
    (folder / "constraints.txt").write_text("# exact\n" + "".join(f"{name}=={v}\n" for name, v in pins.items()))
    return folder


def test_packages_are_those_of_the_checkout(tmp_path: Path) -> None:
    missing = package_findings(checkout(tmp_path, "no-such-package>=1", numpy="1.0"))
    assert [f.state for f in missing] == ["fail", "warn"] and not loadable(missing)
    assert missing[0].found == "not installed: no-such-package" and missing[0].fix == "bash scripts/setup.sh"
    assert missing[1].found.startswith("numpy ") and missing[1].found.endswith(", tested is 1.0")
    (newer,) = package_findings(checkout(tmp_path, "numpy<2", numpy="1.26"))
    assert newer.state == "fail" and ", expected <2" in newer.found and loadable([newer])
    (build,) = package_findings(checkout(tmp_path, "torch", torch="2.13.0"))
    assert build.state == "ok", "a build for another GPU is the same version"
    (tmp_path / "constraints.txt").unlink()
    assert [f.state for f in package_findings(tmp_path)] == ["warn"]


def test_neurons_that_would_run_another_checkout_are_named(tmp_path: Path) -> None:
    (tmp_path / "distributed_training").mkdir()
    (tmp_path / "distributed_training/__init__.py").touch()
    assert checkout_finding().state == "ok"
    other = checkout_finding(path=[str(tmp_path)])
    assert other.state == "fail" and str(tmp_path) in other.found and "PYTHONPATH" in other.fix


def test_a_folder_that_cannot_be_written_says_why_and_nothing_stays_of_the_try(tmp_path: Path) -> None:
    (fine,) = folder_findings("--run-dir", tmp_path / "new/folder")
    assert fine.state in ("ok", "warn") and fine.name == "run dir" and list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (wrong,) = folder_findings("--run-dir", tmp_path / "file")
    assert wrong.state == "fail" and "is a file" in wrong.found and "--run-dir" in wrong.fix
    (sealed,) = folder_findings("--run-dir", Path("/proc/self"))
    assert sealed.state == "fail" and sealed.fix


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        (nearly,) = folder_findings("--run-dir", tmp_path)
        assert nearly.state == "fail" and nearly.found.endswith("0.00 GiB free")
        with pytest.raises(OSError, match="No space"), (tmp_path / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        (full,) = folder_findings("--run-dir", tmp_path)
        assert full.state == "fail" and "No space left" in full.found and "make room" in full.fix
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        (sealed,) = folder_findings("--run-dir", tmp_path)
        assert sealed.state == "fail" and "mounted read-only" in sealed.found
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


LOOK = """
import resource
from distributed_training.doctor.machine import files_finding
for limits in (1024, 5000), (1024, 1024), (64, 64):
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(files_finding())
"""


def test_a_node_takes_as_many_files_as_it_may_have_and_says_if_those_are_few() -> None:
    ran = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    own_to_raise, few, too_few = ran.stdout.splitlines()
    assert "'ok'" in own_to_raise and "5,000" in own_to_raise
    assert "'warn'" in few and "'fail'" in too_few and "LimitNOFILE" in too_few


def test_memory_is_what_the_control_groups_leave(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put("proc/meminfo", "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n")
    assert memory_bytes(tmp_path) == (16000 << 10, 8000 << 10)
    put("proc/self/cgroup", "0::/system.slice/node.service\n")
    put("sys/fs/cgroup/system.slice/node.service/memory.max", "max\n")
    put("sys/fs/cgroup/system.slice/memory.max", str(4000 << 10))
    put("sys/fs/cgroup/system.slice/memory.current", str(1000 << 10))
    assert memory_bytes(tmp_path) == (4000 << 10, 3000 << 10)
    put("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu:/\n")
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", str(2000 << 10))
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", str(3000 << 10))
    assert memory_bytes(tmp_path) == (2000 << 10, 0), "in a container its own group is the root"
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert memory_bytes(tmp_path)[0] == 16000 << 10


@pytest.mark.parametrize(
    ("mode", "state", "says"),
    [
        (0o600, "ok", "600"),
        (0o400, "ok", "400"),
        (0o640, "warn", "its group may read"),
        (0o644, "fail", "every user of this machine may read"),
        (0o666, "fail", "every user of this machine may change"),
        (0o660, "fail", "its group may change"),
    ],
)
def test_who_may_read_the_hotkey(tmp_path: Path, mode: int, state: str, says: str) -> None:
    key = tmp_path / "my key"
    assert mode_finding(key) is None
    key.touch()
    key.chmod(mode)
    found = mode_finding(key)
    assert found is not None and found.state == state and says in found.found
    assert found.fix == ("" if state == "ok" else f"chmod 600 '{key}'")


def test_a_node_says_at_its_start_what_will_be_in_its_way(tmp_path: Path) -> None:
    key = tmp_path / "wallets/local/hotkeys/miner-0"
    key.parent.mkdir(parents=True)
    key.touch(0o600)
    config = load_config(Role.MINER, ["--preset", "local", "--run-dir", str(tmp_path), "--wallet.hotkey", "miner-0"])
    began = time.perf_counter()
    told = [f for f in at_a_start(config) if f.name != "run dir"]  # how full this disk is, is not ours
    assert told == [] and time.perf_counter() - began < 0.2
    key.chmod(0o644)
    assert [f.name for f in at_a_start(config) if f.name != "run dir"] == ["hotkey mode"]


def test_who_has_a_folder_is_seen_without_touching_it(tmp_path: Path) -> None:
    assert held(tmp_path) is None and list(tmp_path.iterdir()) == []
    lock = Lock(tmp_path, "")
    said = (tmp_path / "lock").read_text()
    found = held(tmp_path)
    assert found is not None and found.pid == os.getpid() and (tmp_path / "lock").read_text() == said
    lock.release()
    assert held(tmp_path) is None


async def test_who_listens_on_a_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        who = listener(port)
        assert who.pid == os.getpid()
        with pytest.raises(ConfigError, match=rf"^port {port} is in use by process {os.getpid()} \(.+\); stop that"):
            await free_port("127.0.0.2", port, 0.0)
    assert listener(port).pid is None
