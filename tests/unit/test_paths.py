"""What a person typed as a path: understood, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_training.errors import ConfigError
from distributed_training.paths import existing_file, existing_folder, new_file, typed, usable_folder
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config

LONG = "n" * 256
ODD = os.fsdecode(b"rapport-\xe9t\xe9")


def refused(check: Callable[[Path], Path] | Callable[[str], Path], value: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(value)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_home_and_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert typed("~") == tmp_path and typed("~/a b") == tmp_path / "a b"
    assert typed("runs/x") == tmp_path / "runs" / "x"
    assert typed("~root/x").is_absolute() and "~" not in str(typed("~root/x"))
    assert typed(f"/a/{ODD}") == Path(f"/a/{ODD}") and typed("/a/😀 b") == Path("/a/😀 b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"), ("  ", "empty"), ("a\0b", "control characters"), ("a\nb", "line breaks"),
        ("~nosuchuser/x", "there is no user 'nosuchuser'"), (LONG, "longer than 255 bytes"),
        ("é" * 128, "longer than 255 bytes"), ("/x" * 2100, "longer than 4095 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_path_says_why(text: str, said: str) -> None:
    assert said in refused(typed, text)


def test_a_user_without_a_home_needs_none_where_paths_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(os, "getuid", lambda: 123456)  # the system's answer, not ours
    assert "HOME is not set" in refused(typed, "~/x")
    argv = ["--netuid", "38", "--run-dir", "/tmp/run"]
    with pytest.raises(ConfigError, match=r"^--wallet\.path: ~: .*HOME is not set"):
        load_config(Role.MINER, argv)
    config = load_config(Role.MINER, [*argv, "--wallet.path", "/tmp/keys"])
    assert config.wallet.path == Path("/tmp/keys")


def test_each_kind_of_place_is_told_from_the_others(tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    file.touch()
    link.symlink_to(tmp_path / "gone")
    assert existing_folder(folder) == folder and existing_file(file) == file
    assert usable_folder(folder / "new" / "er") == folder / "new" / "er" and new_file(folder / "x") == folder / "x"
    assert new_file(Path(os.devnull)) == Path(os.devnull)
    assert "is a folder" in refused(existing_file, folder) and "is a file" in refused(existing_folder, file)
    assert "does not exist" in refused(existing_file, folder / "x")
    assert "which is not there" in refused(existing_file, link) and "which is not there" in refused(usable_folder, link)
    assert "is no folder" in refused(usable_folder, file / "x") and "is a file" in refused(usable_folder, file)
    assert "is a folder" in refused(new_file, folder)
    assert "does not exist" in refused(new_file, folder / "no" / "x")
    assert "too long" in refused(usable_folder, folder / LONG)


AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from distributed_training.paths import existing_file, existing_folder, new_file, usable_folder
from distributed_training.errors import ConfigError
os.setgid(12345), os.setuid(12345)
root = Path(sys.argv[1])
for check, name in (
    (existing_file, "closed/x"), (existing_folder, "closed"), (usable_folder, "read/x"), (usable_folder, "read"),
    (new_file, "read/x"), (existing_file, "secret"),
):
    try:
        print(check(root / name))
    except ConfigError as error:
        print("no:", error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    for name, mode in (("closed", 0o700), ("read", 0o755)):
        (tmp_path / name).mkdir(mode)
    (tmp_path / "secret").touch(0o600)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER_USER, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("\n") == 6
    assert all(line.startswith("no: ") and "this user may not" in line for line in done.stdout.splitlines())


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert typed("/a") == Path("/a")
    with pytest.raises(ConfigError, match="x: the current folder is gone"):
        typed("x")
