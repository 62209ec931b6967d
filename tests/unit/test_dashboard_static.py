"""The page's own files: what is vendored is what was published, and nothing that the page's CSP forbids is in them."""

import hashlib
import re
from pathlib import Path

STATIC = Path(__file__).parents[2] / "distributed_training" / "dashboard" / "static"
SCRIPTS = sorted((STATIC / "js").glob("*.js"))


def test_what_is_vendored_has_the_noted_sums() -> None:
    noted = dict(re.findall(r"\| `(\S+)` \| ([0-9a-f]{64}) \|", (STATIC / "vendor" / "VENDORED.md").read_text()))
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (STATIC / "vendor").iterdir()
        if path.name != "VENDORED.md"
    }
    assert found == noted


def test_data_never_becomes_markup_or_code() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/2000/svg)"
    )
    assert len(SCRIPTS) > 10
    for script in SCRIPTS:
        assert not forbidden.search(script.read_text()), script.name


def test_the_page_has_nothing_inline_and_asks_only_its_own_address() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|(src|href)=\"(https?:)?//", page)
    for target in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert (STATIC / target.removeprefix("static/")).is_file(), target


def test_each_script_is_small_says_what_it_is_for_and_imports_what_exists() -> None:
    for script in SCRIPTS:
        text = script.read_text()
        assert text.startswith("// "), script.name
        assert len(text.splitlines()) <= 300, script.name
        for name in re.findall(r'(?:from|import) "\./(\w+\.js)"', text):
            assert (STATIC / "js" / name).is_file(), (script.name, name)
