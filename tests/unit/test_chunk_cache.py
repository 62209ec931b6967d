from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from distributed_training.data.places.cache import ChunkCache

SHA = "ab" * 32


def on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_what_is_put_comes_back_for_every_process(tmp_path: Path) -> None:
    one, two = ChunkCache(tmp_path, SHA, 10_000), ChunkCache(tmp_path, SHA, 10_000)
    assert one.get("1") is None
    one.put("1", b"one")
    assert two.get("1") == b"one"
    two.drop("1")
    assert one.get("1") is None
    one.drop("1")
    assert ChunkCache(tmp_path, "cd" * 32, 10_000).get("1") is None


def test_changed_entries_are_gone(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, SHA, 10_000)
    for damage in (lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"\0" + data[1:]):
        cache.put("1", b"some bytes")
        path = tmp_path / SHA[:32] / "1"
        path.write_bytes(damage(path.read_bytes()))
        assert cache.get("1") is None
        assert not path.exists()


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, SHA, 100_000)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "7.123-4.part").write_bytes(bytes(50_000))  # left by a killed process, of another run
    old = time.time() - 1000
    os.utime(tmp_path / "other" / "7.123-4.part", (old, old))
    for number in range(300):
        cache.put(str(number), bytes(1_000))
        assert cache.get("0") is not None
        os.utime(tmp_path / SHA[:32] / str(number), (old + number, old + number))
        assert cache.get("0") is not None
        assert on_disk(tmp_path) <= 100_000 * 17 // 16 + 1_032
    assert not (tmp_path / "other" / "7.123-4.part").exists()
    assert cache.get("299") is not None
    assert cache.get("5") is None
    cache.put("big", bytes(200_000))
    assert cache.get("big") is None


def test_the_heldout_set_goes_last(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, SHA, 20_000)
    cache.put("heldout-0", bytes(1_000))
    os.utime(tmp_path / SHA[:32] / "heldout-0", (1, 1))
    (tmp_path / SHA[:32] / "heldout-1.12-3.part").write_bytes(bytes(1_000))  # left by a killed process
    os.utime(tmp_path / SHA[:32] / "heldout-1.12-3.part", (1, 1))
    for number in range(60):
        cache.put(str(number), bytes(1_000))
    assert sorted(path.name for path in tmp_path.rglob("heldout-*")) == ["heldout-0"]
    assert on_disk(tmp_path) <= 20_000 * 17 // 16
    for number in range(60):
        cache.put(f"heldout-{number}", bytes(1_000))
    assert on_disk(tmp_path) <= 20_000 * 17 // 16


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_an_entry_of_another_user_is_there() -> None:
    with TemporaryDirectory() as folder:  # not tmp_path: that is closed to other users
        Path(folder).chmod(0o755)
        cache = ChunkCache(Path(folder), SHA, 10_000)
        cache.put("1", b"of root")
        os.seteuid(65534)
        try:
            assert cache.get("1") == b"of root"
        finally:
            os.seteuid(0)


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ChunkCache(tmp_path / "file", SHA, 10_000)
    cache.put("1", b"x")
    cache.put("2", b"x")
    cache.drop("1")
    assert cache.get("1") is None


def test_many_writers_and_readers(tmp_path: Path) -> None:
    wrong: list[str] = []

    def use(seed: int) -> None:
        draw, cache = random.Random(seed), ChunkCache(tmp_path, SHA, 40_000)
        for _ in range(150):
            key = draw.randrange(40)
            found = cache.get(str(key))
            if found is not None and found != bytes([key]) * 1_500:
                wrong.append(str(key))
            cache.put(str(key), bytes([key]) * 1_500)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert on_disk(tmp_path) <= 40_000 * (1 + 4 / 16) + 4 * 1_532
    assert not list(tmp_path.rglob("*.part"))
