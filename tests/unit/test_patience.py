"""Own trouble at the seams: pages that do not come, too little memory, a disk without room."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from tiny_training import GPT2, manifest

import distributed_training
from distributed_training.averaging.overflow import Overflow
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.data.base import Page, PageFacts
from distributed_training.data.patience import MAX_LEFT, PageReads
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.errors import DataUnavailable, LocalFault, OutOfMemory
from distributed_training.files import write_whole
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Fault
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.protocol.rules.assignment import page_index
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import Trainer, WorkTask, round_permutation
from distributed_training.training.device import out_of_memory
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.outer import initial_state


class SlowPages:
    """Page 0 comes at once, page 1 is broken, the others when `come` is set."""

    def __init__(self) -> None:
        self.come = Event()
        self.num_pages, self.sha256 = 100, "00"

    def fetch(self, index: int) -> Page:
        if index == 1:
            raise DataUnavailable("page 1 is broken")
        if index > 1:
            self.come.wait(30)
        return Page(index, ("text",), bytes(32))

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0)

    def heldout(self) -> tuple[str, ...]:
        return ("held out",)


@pytest.fixture
def slow() -> Iterator[SlowPages]:
    pages = SlowPages()
    yield pages
    pages.come.set()


def test_a_page_is_waited_for_as_long_as_it_is_wanted(slow: SlowPages) -> None:
    reads, looks = PageReads(slow), iter(range(100))
    source = reads.until(lambda: next(looks) == 3)
    assert source.fetch(0).index == 0
    assert (source.num_pages, source.sha256, source.heldout()) == (100, "00", ("held out",))
    with pytest.raises(DataUnavailable, match="broken"):
        source.fetch(1)
    with pytest.raises(DataUnavailable, match="page 2 did not come in time"):
        source.fetch(2)
    assert next(looks) == 4, "it gave up when it was told to, not before"
    with pytest.raises(DataUnavailable, match="in time"):
        reads.until(lambda: False, limit_s=0.1).fetch(3)


def test_reads_that_never_end_are_bounded(slow: SlowPages) -> None:
    reads = PageReads(slow)
    impatient = reads.until(lambda: True)
    for index in range(2, 2 + MAX_LEFT):
        with pytest.raises(DataUnavailable, match="in time"):
            impatient.fetch(index)
    with pytest.raises(DataUnavailable, match="is not asked for"):
        impatient.fetch(50)
    slow.come.set()
    patient = reads.until(lambda: False)
    for _ in range(500):
        try:
            assert patient.fetch(60).index == 60
            return
        except DataUnavailable:
            Event().wait(0.01)
    raise AssertionError("the source answers again, the reads do not")


def test_what_is_out_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


class Disk:
    """A disk that can be full."""

    full = False

    def write(self, path: Path, *parts: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, *parts)


def test_what_a_full_disk_refuses_is_served_from_memory_and_written_later(tmp_path: Path) -> None:
    disk, told = Disk(), list[str]()
    store = RoundStore(tmp_path)
    store.overflow = Overflow(write=disk.write)
    store.overflow.on_trouble = told.append
    disk.full = True
    store.put_output(3, b"h" * 32, StoredOutput(b"record", (b"chu", b"nks")))
    store.put_own(3, (b"wi", b"re"), b"log")
    assert store.output(3, b"h" * 32) == StoredOutput(b"record", (b"chunks",))
    assert store.output_piece(3, b"h" * 32, 2, 3) == b"unk"
    assert (store.own_wire(3), store.own_log(3)) == (b"wire", b"log")
    assert len(told) == 1 and "No space left" in told[0]
    assert RoundStore(tmp_path).own_wire(3) is None, "nothing half-written"
    disk.full = False
    store.overflow.retry()
    assert len(store.overflow) == 0
    assert RoundStore(tmp_path).output(3, b"h" * 32) == StoredOutput(b"record", (b"chunks",))


def test_memory_for_a_full_disk_is_bounded_and_forgets_old_rounds(tmp_path: Path) -> None:
    disk = Disk()
    disk.full = True
    store = RoundStore(tmp_path)
    store.overflow = Overflow(budget=10, write=disk.write)
    store.put_own(1, [b"123456"], b"l")
    store.put_own(2, [b"abcdef"], b"m")
    assert store.own_wire(1) is None and store.own_wire(2) == b"abcdef"
    with pytest.raises(LocalFault, match="No space left"):
        store.put_own(3, [b"more than all of it"], b"")
    for folder in store.overflow.folders():
        store.overflow.forget(folder)
    assert len(store.overflow) == 0 and store.own_wire(2) is None


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_disk_corrupts_nothing_and_is_recovered_from(tiny_disk: Path) -> None:
    store, journal = RoundStore(tiny_disk), Journal(tiny_disk / "journal.sqlite")
    metrics = Metrics([JsonlSink(tiny_disk / "events.jsonl")], role="miner", uid=0, threads=False)
    metrics.emit(Fault(what="before", detail=""))
    journal.save_round(0, {"root": "aa"})
    fill(tiny_disk / "ballast")
    lost = [journal_refuses(journal, number) for number in range(1, 60)]
    assert any(lost), "the disk is full"
    store.put_own(1, [os.urandom(1 << 17)], b"log")
    assert len(store.own_wire(1) or b"") == 1 << 17
    for number in range(500):
        metrics.emit(Fault(what="while full", detail=f"{number} {'x' * 100}"))
    (tiny_disk / "ballast").unlink()
    metrics.emit(Fault(what="after", detail=""))
    journal.save_round(100, {"root": "bb"})
    store.overflow.retry()
    assert len(store.overflow) == 0 and len(RoundStore(tiny_disk).own_wire(1) or b"") == 1 << 17
    metrics.close()
    journal.close()
    events = [json.loads(line) for line in (tiny_disk / "events.jsonl").read_text().splitlines()]
    assert events[0]["what"] == "before" and events[-1]["what"] == "after"
    reopened = Journal(tiny_disk / "journal.sqlite")
    assert reopened.last_round() == (100, {"root": "bb"})
    reopened.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(np.zeros(4096, np.uint8)))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def journal_refuses(journal: Journal, number: int) -> bool:
    try:
        journal.save_round(number, {"text": "y" * 3000})
    except LocalFault as error:
        assert "full" in str(error)
        return True
    return False


def test_a_clock_that_jumps_changes_nothing_a_node_does() -> None:
    """Only these look at the wall clock: stamps of events, expiry of hints and of signed addresses, what is said after
    the machine slept, and the local chain's arithmetic."""
    package = Path(distributed_training.__file__).parent
    asks = re.compile(r"\btime\.time\(|\bdatetime\.(now|utcnow|today)\(|\btime\.(gmtime|localtime|strftime)\(")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if asks.search(path.read_text("utf-8"))}
    node_code = {path for path in found if not path.startswith(("localnet/", "simulation/", "chain/local/"))}
    assert node_code == {"data/places/addresses.py", "metrics/base.py", "network/hints.py", "stillness.py"}


def test_too_little_memory_makes_the_next_attempt_smaller() -> None:
    run = manifest(GPT2)
    inner = InnerLoop(build_model(GPT2, 7), run)
    sizes = list[bool]()
    worker = Trainer(inner, HungryPages(), ByteTokenizer(), run)
    task = WorkTask(0, 1, bytes(32), initial_state(to_flat(build_model(GPT2, 7)), run.average), 2, lambda: False, noted)
    for _ in range(5):
        with pytest.raises(OutOfMemory) as caught:
            worker.work(task)
        sizes.append(caught.value.retry)
    assert sizes == [True, True, True, False, False], "a batch of 8 can be halved three times"


def test_a_worker_that_fails_does_not_wait_for_the_page_it_reads_ahead() -> None:
    class OneLongPage(SlowPages):
        def fetch(self, index: int) -> Page:
            if index == first:
                return Page(index, ("text " * 20_000,), bytes(32))
            self.ahead.set()
            self.come.wait(30)
            raise DataUnavailable("nobody waited")

        ahead = Event()

    def no_room(record: StepRecord, seconds: float) -> None:
        raise MemoryError

    config, pages = GPT2 | {"vocab_size": 257}, OneLongPage()
    run = manifest(config)
    pages.num_pages = run.data.num_pages
    first = page_index(round_permutation(run, 0, bytes(32)), run.max_uids, 1, 0)
    worker = Trainer(InnerLoop(build_model(config, 7), run), pages, ByteTokenizer(), run)
    state, began = initial_state(to_flat(build_model(config, 7)), run.average), time.monotonic()
    with pytest.raises(OutOfMemory):
        worker.work(WorkTask(0, 1, bytes(32), state, 2, lambda: False, no_room))
    assert pages.ahead.is_set() and time.monotonic() - began < 20
    pages.come.set()


def noted(record: StepRecord, seconds: float) -> None:
    raise AssertionError("no step can be done")


class HungryPages:
    """A source that needs more memory than there is."""

    def __init__(self) -> None:
        self.num_pages, self.sha256 = 8, "00"

    def fetch(self, index: int) -> Page:
        raise MemoryError

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0)

    def heldout(self) -> tuple[str, ...]:
        raise MemoryError
