"""Folders that one process uses: who comes second is told by whom, and a process that ended blocks nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed_training.data.local import build_pages
from distributed_training.errors import ConfigError
from distributed_training.locks import InUse, Lock, holder

PROGRAM = """
import os, sys, pathlib
from distributed_training.locks import Lock
from distributed_training.settings.entry import run_main

def main():
    lock = Lock(pathlib.Path(sys.argv[1]), "wait for it", name=sys.argv[2])
    print("locked", flush=True)
    {then}
    return 0

sys.exit(run_main(main))
"""


def command(folder: Path, then: str, name: str = "lock") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(then=then), str(folder), name]


@contextmanager
def locked_by_another(folder: Path, name: str = "lock") -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command(folder, "sys.stdin.read()", name), text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        yield other
        other.kill()


def test_who_comes_second_is_told_in_one_line_who_was_first_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    lock = Lock(folder, "not shown")
    second = subprocess.run(command(folder, "pass"), capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert f"{folder} is in use by process {os.getpid()} (" in second.stderr
    assert "pytest" in second.stderr and ", since 20" in second.stderr
    assert second.stderr.endswith("; wait for it\n")
    with pytest.raises(InUse, match=rf"process {os.getpid()} "):  # in one process too
        Lock(folder, "")
    lock.release()
    lock.release()
    assert subprocess.run(command(folder, "pass"), capture_output=True, timeout=60).returncode == 0


def test_a_lock_dies_with_its_process_and_its_children_do_not_keep_it(tmp_path: Path) -> None:
    child = "import subprocess; subprocess.Popen(['sleep', '30']); os.kill(os.getpid(), 9)"
    subprocess.run(command(tmp_path, child), stdout=subprocess.DEVNULL, timeout=60)
    with Lock(tmp_path, ""):
        found = holder(tmp_path)
        assert found is not None and found.pid == os.getpid() and found.lives


def test_a_holder_on_another_machine_is_named_with_it_and_not_called_dead(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as other:
        pid, said, _ = (tmp_path / "lock").read_text().splitlines()
        (tmp_path / "lock").write_text(f"{2**22 + 7}\n{said}\nelsewhere\n")
        with pytest.raises(InUse, match=rf"in use by process {2**22 + 7} on elsewhere \(") as caught:
            Lock(tmp_path, "wait")
        assert int(pid) == other.pid and "left when it ended" not in str(caught.value)


def test_a_lock_file_that_is_not_ours_to_write_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(ConfigError, match=rf"cannot write to {tmp_path}/lock: "):
        Lock(tmp_path, "")


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as other:
        began = time.monotonic()
        with pytest.raises(InUse):
            Lock(tmp_path, "", wait_s=0.3)
        assert time.monotonic() - began >= 0.3
        other.stdin.close()  # type: ignore[union-attr]
        Lock(tmp_path, "", wait_s=30).release()


def test_a_folder_that_cannot_be_written_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot write to") as caught:
            Lock(folder, "")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that refuses")
def test_a_folder_on_a_read_only_file_system_is_the_operators_error() -> None:
    with pytest.raises(ConfigError, match="cannot write to /proc/self"):
        Lock(Path("/proc/self"), "")


@pytest.mark.parametrize("text", ["", "12x\n", "\xff\xfe", "4711"])
def test_a_strange_lock_file_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_bytes(text.encode("latin-1"))
    found = holder(tmp_path)
    assert (found is None) == (text != "4711")
    with Lock(tmp_path, ""):
        pass


def test_a_second_demo_on_a_run_directory_is_refused_before_anything_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    demo = [sys.executable, "-m", "distributed_training.localnet", "--plain", "--run-dir", str(run)]
    with locked_by_another(tmp_path, ".run.lock") as other:
        second = subprocess.run(demo, capture_output=True, text=True, timeout=100)
    assert second.returncode == 2, second.stdout + second.stderr
    said = second.stderr.strip().splitlines()
    assert len(said) == 1 and f"{run} is in use by process {other.pid} " in said[0] and "--run-dir" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_a_killed_demos_directory_is_free_when_its_nodes_have_ended(tmp_path: Path) -> None:
    code = f"""
import os, sys, pathlib
from distributed_training.localnet.run.processes import NodeProcesses
lock, log = Lock(pathlib.Path({str(tmp_path)!r}), ""), pathlib.Path({str(tmp_path / "log")!r})
processes = NodeProcesses(lock=lock)
slow = "import signal, sys, time; signal.signal(15, lambda *_: time.sleep(1) or sys.exit()); print(1, flush=True)"
processes.start("slow", [sys.executable, "-c", slow + "; time.sleep(60)"], log)
while not log.stat().st_size: pass
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", "from distributed_training.locks import Lock\n" + code], timeout=60)
    with pytest.raises(InUse, match=r"what process .* left when it ended"):
        Lock(tmp_path, "")
    Lock(tmp_path, "", wait_s=20).release()


def test_pages_are_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n".join(f"line {n} of some text" for n in range(3000)))
    with locked_by_another(tmp_path / "pages", ".lock") as other:
        other.stdin.close()  # type: ignore[union-attr]  # it ends soon, and is waited for
        made = build_pages(tmp_path / "pages", tmp_path / "text", num_pages=None, page_bytes=500, heldout_bytes=500)
    assert made.num_pages >= 16
