"""Which release a node takes: signatures, names, versions, protocol; with real git and real keys."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from auto_update import tags
from auto_update.git import Git
from auto_update.prepare import ENVIRONMENT_BYTES, RELEASE, Asked, Home, find, look_once, need
from auto_update.tags import Version, delay_s
from auto_update.trouble import Refused, Trouble
from hypothesis import given, settings
from hypothesis import strategies as st
from product import Product

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def product(tmp_path: Path) -> Product:
    made = Product(tmp_path)
    made.install()
    return made


def looked(product: Product, tmp_path: Path, **asked: object) -> tuple[str | None, list[str]]:
    folder = tmp_path / f"look-{os.urandom(4).hex()}"
    folder.mkdir()
    seen_file = tmp_path / "seen.json"
    seen = json.loads(seen_file.read_text()) if seen_file.exists() else {}
    what = {"url": str(product.origin), "running": product.clone, "protocol": 4, "bad": {}} | asked
    release, lines = find(Git(folder), Asked(**what), seen)  # type: ignore[arg-type]
    seen_file.write_text(json.dumps(seen))
    return (None if release is None else release.tag), lines


def test_the_newest_signed_release_is_found(product: Product, tmp_path: Path) -> None:
    assert looked(product, tmp_path) == (None, [])
    product.release("0.2.0")
    product.release("0.10.0")
    product.tag("v9", key="maintainer")
    product.tag("v9.0.0-rc1", key="maintainer")
    assert looked(product, tmp_path) == ("v0.10.0", [])
    tag, lines = looked(product, tmp_path, bad={"v0.10.0": "it got through no round here"})
    assert tag == "v0.2.0" and lines == ["v0.10.0 is not tried again: it got through no round here"]


def test_what_is_not_signed_by_a_trusted_key_is_refused(product: Product, tmp_path: Path) -> None:
    product.release("0.2.0", tag=False)
    product.git("tag", "v0.2.0")
    product.tag("v0.2.1", key=None)
    product.tag("v0.2.2", key="stranger")
    tag, lines = looked(product, tmp_path)
    assert tag is None
    assert lines == [
        "v0.2.2 is refused: its signature is by no key that the running version trusts",
        "v0.2.1 is refused: it is not signed with an SSH key",
        "v0.2.0 is refused: it is not signed (a plain tag)",
    ]


def test_the_key_counts_only_for_releases_and_for_git(product: Product, tmp_path: Path) -> None:
    public = product.key("maintainer").with_suffix(".pub").read_text()
    product.release("0.2.0")
    for line in (f"someone@else {public}", f'{tags.SIGNER} namespaces="file" {public}'):
        (product.clone / tags.KEYS).write_text(line)
        tag, lines = looked(product, tmp_path)
        assert tag is None and "by no key" in lines[0]


def test_keys_are_exchanged_by_a_release_that_an_old_one_signed(product: Product, tmp_path: Path) -> None:
    product.trust("second")
    product.release("0.2.0")
    product.release("0.3.0", key="second")
    tag, lines = looked(product, tmp_path)
    assert tag == "v0.2.0" and "v0.3.0 is refused" in lines[0]
    product.git("clone", "--quiet", "-b", "v0.2.0", str(product.origin), str(tmp_path / "next"))
    assert looked(product, tmp_path, running=tmp_path / "next")[0] == "v0.3.0"


def test_the_keys_of_this_repository_are_none_yet(product: Product, tmp_path: Path) -> None:
    assert not tags.has_keys(REPOSITORY)
    product.release("0.2.0")
    shutil.copy(REPOSITORY / tags.KEYS, product.clone / tags.KEYS)
    with pytest.raises(Trouble, match="no release key is trusted yet"):
        looked(product, tmp_path)


def test_moved_older_and_renamed_tags_are_refused(product: Product, tmp_path: Path) -> None:
    product.release("0.2.0")
    assert looked(product, tmp_path)[0] == "v0.2.0"
    product.release("0.2.0", force=True, how="other")
    tag, lines = looked(product, tmp_path)
    assert tag is None and "it was moved since it was first seen" in lines[0]
    product.git("update-ref", "refs/tags/v0.9.0", product.git("rev-parse", "v0.2.0").strip())
    tag, lines = looked(product, tmp_path)
    assert lines[0] == "v0.9.0 is refused: the tag was signed under another name"
    product.release("0.0.9")
    product.git("tag", "-d", "v0.2.0", "v0.9.0")
    assert looked(product, tmp_path) == (None, []), "0.0.9 is older than what runs"
    product.release("0.0.9", name="v0.3.0")
    assert looked(product, tmp_path)[1] == ["v0.3.0 is refused: its files are those of v0.0.9"]


def test_another_protocol_than_the_runs_is_refused(product: Product, tmp_path: Path) -> None:
    product.release("0.2.0", protocol=5)
    product.release("0.1.1", protocol=4)
    tag, lines = looked(product, tmp_path)
    assert tag == "v0.1.1" and lines == ["v0.2.0 is refused: it speaks protocol 5, this node's run 4"]


def test_a_signature_covers_every_byte(product: Product, tmp_path: Path) -> None:
    product.release("0.2.0")
    data = product.git("cat-file", "tag", "v0.2.0").encode()
    keys = product.clone / tags.KEYS
    tags.verify(tags.parse_tag("v0.2.0", data), keys)
    other = data.replace(data[7:15], b"deadbeef", 1)
    with pytest.raises(Refused, match="by no key"):
        tags.verify(tags.parse_tag("v0.2.0", other), keys)
    for wrong in (data + b"more", b"x" + data, data.replace(b"type commit", b"type tree"), data + data, b""):
        with pytest.raises(Refused):
            tags.parse_tag("v0.2.0", wrong)


def test_links_and_submodules_are_no_release(product: Product, tmp_path: Path) -> None:
    (product.origin / "link").symlink_to("/etc/passwd")
    product.release("0.2.0")
    said = look(product, tmp_path)
    assert said["kind"] == "no" and said["line"] == "v0.2.0 is refused: it holds a link or a submodule"


def look(product: Product, tmp_path: Path, url: str | None = None) -> dict[str, str]:
    asked = Asked(url or str(product.origin), product.clone, 4, {})
    return look_once(Home(tmp_path / "home"), asked, ["miner", str(product.run)], only_say=False, say=print)


def test_a_release_is_prepared_whole_and_what_was_left_half_is_cleared(product: Product, tmp_path: Path) -> None:
    product.release("0.2.0")
    half = tmp_path / "home" / "versions" / "v0.2.0.part"
    half.mkdir(parents=True)
    (tmp_path / "home" / "fetch-old").mkdir()
    found = look(product, tmp_path)
    assert found["kind"] == "ready", found
    version = Path(found["path"])
    assert found["kind"] == "ready" and (version / RELEASE).is_file() and not half.exists()
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["environments", "lock", "seen.json", "versions"]
    assert (version / ".venv" / "bin" / "python").exists() and not (version / ".git").exists()
    product.release("0.3.0")
    assert Path(look(product, tmp_path)["path"]).name == "v0.3.0"
    assert len(list((tmp_path / "home" / "environments").iterdir())) == 1, "the same pins, the same environment"


def test_hooks_filters_and_settings_of_others_do_not_run(product: Product, tmp_path: Path, monkeypatch) -> None:
    marker, config = tmp_path / "ran", tmp_path / "config"
    config.write_text(f'[filter "x"]\n smudge = touch {marker}\n[core]\n fsmonitor = touch {marker}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {marker}")
    product.release_file(".gitattributes", "* filter=x\n")
    product.release("0.2.0")
    assert look(product, tmp_path)["kind"] == "ready" and not marker.exists()
    for url in (f"ext::touch {marker}", "git://127.0.0.1/x", "http://127.0.0.1:9/x", "--upload-pack=touch"):
        said = look(product, tmp_path, url)
        assert said["kind"] == "no" and said["line"].startswith(f"the update server {url} does not answer"), said
    assert not marker.exists()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"https://127.0.0.1:{listening.getsockname()[1]}/x"


def test_a_server_that_is_down_hangs_or_gives_rubbish_is_one_line(
    product: Product, tmp_path: Path, silent: str
) -> None:
    folder = tmp_path / "git"
    folder.mkdir()
    with pytest.raises(Trouble, match=r"took more than 0.3 s"):
        Git(folder, ask_s=0.3).remote_tags(silent)
    product.release("0.2.0")
    for path in (product.origin / ".git" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"rubbish")
    assert "v0.2.0" in look(product, tmp_path)["line"] or "does not" in look(product, tmp_path)["line"]
    shutil.rmtree(product.origin)
    line = look(product, tmp_path)["line"]
    assert line.startswith("the update server") and "\n" not in line


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"v1.0.0 needs .* GB in .* GB are free; make room there"):
        need(tmp_path, 1 << 60, "v1.0.0")
    need(tmp_path, 1, "v1.0.0")
    assert ENVIRONMENT_BYTES > 2e9


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk_is_one_line(product: Product, small_disk: Path) -> None:
    product.release_file("big", os.urandom(2 << 20).hex())
    product.release("0.2.0")
    line = look(product, small_disk)["line"]
    assert "No space left" in line or "does not give v0.2.0" in line, line
    assert not list((small_disk / "home").glob("fetch-*"))


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), st.floats(1, 1e6))
def test_a_node_waits_a_time_of_its_own(hotkey: str, tag: str, window_s: float) -> None:
    assert 0 <= delay_s(hotkey, tag, window_s) < window_s
    assert delay_s(hotkey, tag, window_s) == delay_s(hotkey, tag, window_s)


def test_nodes_are_spread_over_the_window() -> None:
    quarters = [0] * 4
    for number in range(400):
        quarters[int(delay_s(f"hotkey {number}", "v1.2.3", 4.0))] += 1
    assert min(quarters) > 70
    assert delay_s("a", "v1.2.3", 1) != delay_s("a", "v1.2.4", 1)


@pytest.mark.parametrize("text", ["1.2", "v1.2.3", "01.2.3", "1.2.3 ", "1.2.3-rc1", "1.2.٣", "1.2.3\n", ""])
def test_a_version_is_three_numbers(text: str) -> None:
    assert Version.of_text(text) is None
    assert Version.of_tag("v1.10.0") > Version.of_tag("v1.9.9")  # type: ignore[operator]


def test_what_a_tree_says_is_read_and_never_run() -> None:
    said = tags.about(b'import os\nos._exit(1)\n__version__ = "1.2.3"\nPROTOCOL_VERSION = 7\n', "x")
    assert said == tags.About(Version(1, 2, 3), 7)
    for wrong in (b"", b"PROTOCOL_VERSION = 4", b'__version__ = "1.2.3"\nPROTOCOL_VERSION = True', b"(" * 9999, b"\0"):
        with pytest.raises(Refused):
            tags.about(wrong, "x")
    mine = tags.about_folder(REPOSITORY)
    assert mine.protocol >= 4
